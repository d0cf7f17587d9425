"""BLAS kernels: better ones are chosen where, and only where, OpenBLAS does not know the CPU."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, tool, write_solver

from tools import blas

NEW = "flags\t\t: fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of given CPU flags, whose OpenBLAS picks `own`, or what it is told among `known`."""

    def make(flags, own, known=("Haswell", "SkylakeX")):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}")
        monkeypatch.setattr(blas, "picked", lambda core=None: core if core in known else own)
        return tmp_path / "cpuinfo"

    monkeypatch.delenv(blas.VARIABLE, raising=False)
    return make


def test_kernels_for_a_cpu_that_openblas_does_not_know(machine):
    assert blas.better_kernels(machine(NEW, "Haswell")) == ("Haswell", "SkylakeX")
    assert blas.better_kernels(machine(NEW, "Zen")) == ("Zen", "SkylakeX")


@pytest.mark.parametrize(
    "flags, own, known",
    [
        (NEW, "Cooperlake", ("Cooperlake", "SkylakeX")),  # it knows the CPU
        (NEW.replace("avx512vl ", ""), "Haswell", ("SkylakeX",)),  # the kernels would not run
        (NEW, "Haswell", ("Haswell",)),  # an OpenBLAS without them
        (NEW, None, ()),  # another BLAS
        ("", "Haswell", ("SkylakeX",)),  # a machine that tells no flags
    ],
)
def test_kernels_are_left_alone(machine, flags, own, known):
    assert blas.better_kernels(machine(flags, own, known)) is None


def test_what_the_user_set_stays(machine, monkeypatch):
    monkeypatch.setenv(blas.VARIABLE, "Haswell")
    assert blas.better_kernels(machine(NEW, "Haswell")) is None and blas.choose_kernels() is None


def test_choice_is_set_and_said(monkeypatch):
    monkeypatch.setattr(blas, "better_kernels", lambda: ("Haswell", "SkylakeX"))
    monkeypatch.setenv(blas.VARIABLE, "")  # is put back at the end
    assert re.search("Haswell.*OPENBLAS_CORETYPE=SkylakeX", blas.choose_kernels())
    assert os.environ[blas.VARIABLE] == "SkylakeX"


@pytest.mark.parametrize("kernel", ["Haswell", "Sandybridge"])
def test_caffe_runs_on_what_is_set_and_numpy_is_not_asked(kernel):
    """The real libraries: the variable reaches Caffe's OpenBLAS, also where it is set after numpy is there."""
    code = ("import os, numpy\nfrom tools.blas import picked\nfrom tools.versions import caffe_blas\n"
            f"os.environ['OPENBLAS_CORETYPE'] = {kernel!r}\nprint(picked(), *caffe_blas()[:2])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    told, library, _, runs = done.stdout.split()
    if library != "openblas":
        pytest.skip(f"this Caffe runs on {library}")
    assert told == runs == kernel, done.stderr


def test_a_run_that_goes_on_with_other_kernels_says_so(small_set, tmp_path):
    solver = write_solver(tmp_path / "made", small_set, iterations=2)

    def train(kernel):
        given = ["--solver", solver, "--run", tmp_path / "run"]
        return tool("tools/train.py", *given, env={**os.environ, blas.VARIABLE: kernel}).stdout

    train("Haswell")
    assert "caffe_blas" not in train("Haswell")
    said = train("Sandybridge")
    assert "caffe_blas" in said and re.search("Haswell.*Sandybridge.*OPENBLAS_CORETYPE=Haswell", said)
