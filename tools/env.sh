#!/bin/bash
# make env, first half: the system packages that Caffe is built with. The second half is tools/env.py.
#
#   tools/env.sh [--mirror URL] [--quiet]
#
# Only missing packages are installed, through sudo when not root; apt's configuration is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  make python3 python3-venv python3-dev                     # the interpreter that Boost.Python is built for
  curl                                                      # fetching data sets
  dpkg-dev patch xz-utils ca-certificates                   # fetching and unpacking the Caffe source package
  g++ cmake libboost-dev libboost-filesystem-dev libboost-system-dev libboost-thread-dev libboost-python-dev
  libgflags-dev libgoogle-glog-dev libhdf5-dev liblmdb-dev libopenblas-dev libprotobuf-dev protobuf-compiler
  libsnappy-dev
)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "make env: this system has no apt. Caffe is built from a Debian source package, tried on Debian 12 (bookworm)." >&2
  echo "          Run this project in a Debian 12 container or virtual machine." >&2
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
