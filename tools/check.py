"""make check: what a bug report needs, and in words what is wrong when something is.

Exit status 1 when something is wrong.
"""

import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("GLOG_minloglevel", "2")

AGAIN = "`make env` builds the right one into .caffe/; call tools with .venv/bin/python, or source .caffe/env.sh"


def problem_with_caffe():
    """What is wrong with the Caffe that `import caffe` finds, in words, or None."""
    try:
        caffe = importlib.import_module("caffe")
    except Exception as error:  # a library that was built for something else fails in many ways
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            missing = "pycaffe" if error.name == "caffe" else f"the library {error.name!r}, which pycaffe imports,"
            return f"{missing} is not on Python's path. {AGAIN}"
        if "numpy" in text.lower() or "multiarray" in text or "_ARRAY_API" in text:
            return (f"pycaffe was compiled for another numpy than the {version('numpy')} here ({text}). Compile it again; "
                    "one that was built here: rm -r .caffe/caffe && make env")  # fmt: skip
        return f"pycaffe cannot be imported ({text}). {AGAIN}"
    where = getattr(caffe, "__file__", None) or next(iter(caffe.__path__))
    if not hasattr(caffe, "Net") or not hasattr(caffe, "layer_type_list"):
        remove = f"`{sys.executable} -m pip uninstall caffe`"
        return f"{where} is not BVLC Caffe: PyPI's package `caffe` is an empty placeholder. {remove}; {AGAIN}"
    if "Python" not in caffe.layer_type_list():
        return f"{where} was built without Python layers, which the loss is (WITH_PYTHON_LAYER=1). {AGAIN}"
    return None


def libraries():
    from tools.versions import LIBRARIES

    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "MISSING: make env"


def main():
    print(f"system      {platform.platform()}, {os.cpu_count()} cores")
    print(f"python      {platform.python_version()}  {sys.executable}")
    for name, found in libraries():
        print(f"{name:<11} {found}")
    from tools.blas import choose_kernels
    from tools.cpu import problem as problem_with_cpu

    if problem := problem_with_cpu():
        print(f"caffe       WRONG: {problem}")
        return 1
    kernels = choose_kernels()
    if problem := problem_with_caffe():
        print(f"caffe       WRONG: {problem}")
        return 1
    import caffe

    from tools.versions import caffe_blas, caffe_flags, caffe_origin

    library, kernel, threads = caffe_blas()
    print(f"caffe       {caffe.__version__}, {caffe_origin()}")
    print(f"            {caffe.__file__}")
    if (flags := caffe_flags()) is not None:
        print(f"            compiled {' '.join(flags) or 'plain'}")
    print("layers      Python layers: yes; Data (LMDB): " + ("yes" if "Data" in caffe.layer_type_list() else "no"))
    print(f"blas        {library}, {kernel} kernels, {threads} threads")
    if kernels:
        print(f"            {kernels}")
    print("nothing is wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
