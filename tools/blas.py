"""Which kernels of OpenBLAS Caffe computes with: better ones than it picks itself, where it does not know the CPU.

    .venv/bin/python tools/blas.py        # prints the kernel to choose, or nothing; .caffe/env.sh asks it for the stock binary

OpenBLAS picks its kernels by the CPU's model when it is loaded. One that is older than the CPU falls back to kernels
without AVX-512 (Debian's 0.3.21 to Haswell's on newer AMD CPUs: a fifth of GoogLeNet's speed). OPENBLAS_CORETYPE overrides
that, and has to be set before Caffe is imported. It stays as it is where the user has set it.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tools.cpu import refuse_another_cpu

AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")  # the kernels that use it
FLAGS = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what those of SkylakeX need
VARIABLE = "OPENBLAS_CORETYPE"
ASK = """
import ctypes
library = ctypes.CDLL("libopenblas.so.0")
library.openblas_get_corename.restype = ctypes.c_char_p
print(library.openblas_get_corename().decode())
"""


def picked(core=None):
    """The kernels that the system's OpenBLAS picks, told to take `core` or by itself; None where there is no OpenBLAS.

    Asked in a process of its own: in this one it would be loaded, and could not pick again.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **({VARIABLE: core} if core else {})}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", ASK], env=environment, text=True, capture_output=True)
    return done.stdout.strip() if done.returncode == 0 else None


def better_kernels(cpuinfo=Path("/proc/cpuinfo")):
    """(picked, better) where OpenBLAS picks kernels without AVX-512 on a CPU that has it, and knows better ones; or None."""
    if VARIABLE in os.environ or not cpuinfo.exists():
        return None
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    if FLAGS - set(flags):
        return None
    kernel = picked()
    if kernel is None or kernel in AVX512 or picked(AVX512[0]) != AVX512[0]:
        return None
    return kernel, AVX512[0]


def choose_kernels():
    """Have Caffe, which must not be imported yet, take the better kernels; returns a sentence where it does, or None.

    Leaves where Caffe was built for another CPU, which would end in an illegal instruction.
    """
    refuse_another_cpu()
    with contextlib.suppress(ImportError):
        import numpy  # noqa: F401 - it brings a newer OpenBLAS of its own, which is not to be told anything
    if (better := better_kernels()) is None:
        return None
    kernel, os.environ[VARIABLE] = better
    return f"OpenBLAS takes this CPU for an older one ({kernel}): {VARIABLE}={better[1]} is set, which it is faster with"


if __name__ == "__main__":
    if found := better_kernels():
        print(found[1])
