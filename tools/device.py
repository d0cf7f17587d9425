"""Where Caffe computes: on the CPU, or on a GPU where it was built with CUDA.

Caffe ends the process, past any exception, when it is asked for a GPU that it was not built for or that is not there; so
both are looked at first. GPUs count as CUDA counts them: from 0, among those of CUDA_VISIBLE_DEVICES where that is set.

    .venv/bin/python tools/device.py 0      # is there one? The Makefile asks before hours of other work
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import ctypes
import os
import re
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")


def loaded(name):
    """The path of the library that Caffe, which is imported, was linked with; None where it was not."""
    found = re.search(rf"/\S*{name}\.so\S*", Path("/proc/self/maps").read_text())
    return found[0] if found else None


def count_gpus(runtime):
    """How many GPUs CUDA finds here; none also where there is no driver."""
    count = ctypes.c_int(0)
    return count.value if ctypes.CDLL(runtime).cudaGetDeviceCount(ctypes.byref(count)) == 0 else 0


def use_device(gpu=None):
    """Have Caffe compute on the GPU of that number, or on the CPU; ValueError where it cannot. Imports Caffe."""
    import caffe

    from tools.versions import caffe_origin

    runtime = loaded("libcudart")
    if gpu is None:
        if loaded("libcudnn") and runtime and not count_gpus(runtime):
            raise ValueError("this Caffe is built with cuDNN, whose layers want a GPU even where the CPU computes; none is here. "
                             "`make env GPU=1` without CUDNN=1, or `make env GPU=`, builds one that does without")  # fmt: skip
        caffe.set_mode_cpu()
        return
    if runtime is None:
        raise ValueError(f"GPU={gpu}: this Caffe is built for the CPU ({caffe_origin()}). `make env GPU=1` builds one with CUDA; "
                         "without GPU= the CPU computes")  # fmt: skip
    if not 0 <= gpu < (gpus := count_gpus(runtime)):
        there = f"there are {gpus}, counted from 0" if gpus else "CUDA finds none, or no driver; nvidia-smi tells"
        raise ValueError(f"GPU={gpu}: no such GPU is here ({there}). Without GPU= the CPU computes")
    caffe.set_mode_gpu()
    caffe.set_device(gpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gpu", type=int, help="number of a GPU")
    use_device(parser.parse_args().gpu)


if __name__ == "__main__":
    run("device", main)
