"""The CUDA toolkit that Caffe is built with: the machine's own where it is complete, or one put together from PyPI's packages."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MAJORS = (12, 13)  # of CUDA that Caffe is edited for
LIBRARIES = ("cudart", "cublas", "curand")
HEADERS = ("cuda_runtime.h", "cublas_v2.h", "curand.h")
# A whole toolkit as far as Caffe needs one; together they fill nvidia/cu13/ as a toolkit is laid out. The packages of
# CUDA 12 hold no nvcc.
FROM_PYPI = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cublas==13.0.2.14",
    "nvidia-curand==10.4.0.35",
)
CUDNN = {12: "nvidia-cudnn-cu12==9.14.0.64", 13: "nvidia-cudnn-cu13==9.14.0.64"}


@dataclass(frozen=True)
class Toolkit:
    """`root` holds bin/nvcc and include/; `version` as nvcc tells it, such as 13.0."""

    root: Path
    version: str

    @property
    def major(self):
        return int(self.version.split(".")[0])


def architectures(given):
    """The GPUs to build for, as nvcc numbers them: ["90"] of "90" or "9.0"; commas between; none given: those that are here.

    Raises ValueError where none is given and none is here.
    """
    if not given:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        try:
            given = ",".join(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).split())
        except (OSError, subprocess.CalledProcessError):
            given = ""
    if not given:
        raise ValueError("no GPU is here (nvidia-smi finds none), so name the architecture of the one that it is for: make env "
                         "GPU=1 CUDA_ARCH=90 (an H100 or H200; 80 an A100, 89 an RTX 40, 75 a T4; commas between)")  # fmt: skip
    found = sorted({name.strip().replace(".", "") for name in given.split(",")})
    if wrong := [name for name in found if not re.fullmatch(r"[1-9][0-9]{1,2}", name)]:
        raise ValueError(f"CUDA_ARCH={given}: {wrong[0]!r} is no architecture; such as CUDA_ARCH=90 or CUDA_ARCH=80,90")
    return sorted(found, key=int)


def _version(nvcc):
    said = subprocess.run([nvcc, "--version"], text=True, capture_output=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else None


def _library(root, name):
    """The path of lib<name>.so of a toolkit; None where it has none."""
    folders = ("lib64", "lib", f"targets/{platform.machine()}-linux/lib", f"lib/{platform.machine()}-linux-gnu")
    return next((root / folder / f"lib{name}.so" for folder in folders if (root / folder / f"lib{name}.so").exists()), None)


def look_at(root):
    """(Toolkit, None) of the folder `root`, or (None, what it lacks)."""
    nvcc = root / "bin" / "nvcc"
    version = _version(nvcc) if nvcc.exists() else None
    if version is None:
        return None, "no nvcc"
    if int(version.split(".")[0]) not in MAJORS:
        return None, f"CUDA {version}; CUDA {MAJORS[0]} or {MAJORS[1]} is needed"
    lacking = [name for name in HEADERS if not (root / "include" / name).exists()]
    lacking += [f"lib{name}.so" for name in LIBRARIES if _library(root, name) is None]
    return (None, f"CUDA {version} without {', '.join(lacking)}") if lacking else (Toolkit(root, version), None)


def on_this_machine():
    """(the complete Toolkit of this machine, or None; [what is wrong with each that is not])."""
    nvcc = shutil.which("nvcc")
    places = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    places += [Path(nvcc).resolve().parent.parent] if nvcc else []
    places += [Path("/usr/local/cuda")]
    problems = []
    for place in dict.fromkeys(places):
        toolkit, problem = look_at(place)
        if toolkit:
            return toolkit, problems
        if (place / "bin" / "nvcc").exists():
            problems.append(f"{place}: {problem}")
    return None, problems


def complete_links(root):
    """Give a folder of PyPI's packages what a linker looks for: lib64, and libX.so beside libX.so.13."""
    if (root / "bin").is_dir() and not (root / "lib64").exists():
        (root / "lib64").symlink_to("lib")
    for library in sorted((root / "lib").glob("lib*.so.*")):
        link = library.with_name(library.name.split(".so.")[0] + ".so")
        if not link.exists():
            link.symlink_to(library.name)


def cudnn_of(toolkit):
    """The folder that holds the toolkit's own cuDNN, or None."""
    return toolkit.root if (toolkit.root / "include" / "cudnn.h").exists() and _library(toolkit.root, "cudnn") else None


def cmake_options(toolkit, archs, cudnn):
    """CMake's options for CUDA; `cudnn` is a folder with include/cudnn.h, or None."""
    options = ["-DCPU_ONLY=OFF", f"-DCUDA_TOOLKIT_ROOT_DIR={toolkit.root}", "-DCUDA_ARCH_NAME=Manual",
               f"-DCUDA_ARCH_BIN={' '.join(archs)}", f"-DCUDA_ARCH_PTX={archs[-1]}",  # newer GPUs translate that one
               "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--no-undefined", f"-DUSE_CUDNN={'ON' if cudnn else 'OFF'}"]  # fmt: skip
    return options + ([f"-DCUDNN_INCLUDE={cudnn}/include", f"-DCUDNN_LIBRARY={_library(cudnn, 'cudnn')}"] if cudnn else [])
