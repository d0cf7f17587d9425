#!/bin/bash
# make env, first half: the system packages that Caffe is built with. The second half is tools/env.py.
#
#   tools/env.sh [--mirror URL] [--quiet] [--pycaffe DIR] [--caffe-src DIR] [--gpu 1] [--cuda-arch 90] [--cudnn 1] [--march native] [--plain 1]
#
# Only missing packages are installed, through sudo when not root; apt's configuration is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

# The Caffe that is given, now or by an earlier call (.caffe/choice.json): a pycaffe needs nothing that one is built with,
# and a source checkout can be built where there is no apt.
pycaffe='' source='' given=''
arguments=("$@")
for ((i = 0; i < $#; i++)); do
  case "${arguments[i]}" in
    --pycaffe) given=1 pycaffe="${arguments[i + 1]-}" ;;
    --caffe-src) given=1 source="${arguments[i + 1]-}" ;;
    --gpu | --cuda-arch | --cudnn | --march | --plain) given=1 ;;
  esac
done
if [ -z "$given" ] && [ -e .caffe/choice.json ]; then
  choice=$(<.caffe/choice.json)
  [[ "$choice" == *'"pycaffe": "/'* ]] && pycaffe=yes
  [[ "$choice" == *'"caffe_src": "/'* ]] && source=yes
fi

packages=(
  make python3 python3-venv                                 # the interpreter
  curl                                                      # fetching data sets
)
[ -n "$pycaffe" ] || packages+=(
  python3-dev                                               # what Boost.Python is built for
  dpkg-dev patch xz-utils ca-certificates                   # fetching and unpacking the Caffe source package
  g++ cmake libboost-dev libboost-filesystem-dev libboost-system-dev libboost-thread-dev libboost-python-dev
  libgflags-dev libgoogle-glog-dev libhdf5-dev liblmdb-dev libopenblas-dev libprotobuf-dev protobuf-compiler
  libsnappy-dev
)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  if [ -n "$pycaffe$source" ]; then # what is missing shows itself
    exec python3 tools/env.py "$@"
  fi
  echo "make env: this system has no apt. Caffe is built from a Debian source package, tried on Debian 12 (bookworm)." >&2
  echo "          Run this project in a Debian 12 container or virtual machine; or name a Caffe (README, \"Other ways to a Caffe\"):" >&2
  echo "          make env PYCAFFE=<a pycaffe that is built>, or make env CAFFE_SRC=<a checkout of BVLC's Caffe>" >&2
  exit 1
fi

missing=()
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | sed -n 's/ installed$//p' | sort -u || true)
for package in "${packages[@]}"; do
  grep -qx -- "$package" <<<"$installed" || missing+=("$package")
done

if ((${#missing[@]})); then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    as_root=(env DEBIAN_FRONTEND=noninteractive)
  elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
  else
    echo "make env: ${#missing[@]} system packages are missing, and there is neither root nor sudo here. Have an administrator run:" >&2
    echo "    apt-get update && $install" >&2
    echo "then call the same command again." >&2
    exit 1
  fi
  echo "make env: installing ${#missing[@]} system packages: ${missing[*]}"
  # A new machine or container has no package lists, or old ones: then update, and try once more.
  if ! "${as_root[@]}" $install >/dev/null 2>&1; then
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" $install
  fi
fi

exec /usr/bin/python3 tools/env.py "$@"
