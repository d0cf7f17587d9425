"""What is only faster changes nothing: BVLC's own layer tests, and weights to the bit, build against build. `make test-layers`.

Caffe is built plain, as `make env` builds it for this machine's CPU, and for other CPUs. SCRATCH names a folder to build
in, which is kept.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from dummy_net import on_dummy_data
from google.protobuf import text_format

from tools import env
from tools.caffe_edits import apply_edits, edits_for
from tools.cpu import lacking

# BVLC's test files of the layers that the nets here are made of, and of all that pools.
FILES = (
    "pooling_layer,stochastic_pooling,spp_layer,maxpool_dropout_layers,lrn_layer,neuron_layer,convolution_layer,im2col_layer,"
    "concat_layer,split_layer,inner_product_layer,power_layer"
)
SOLVER = """
net: "{net}" base_lr: 0.0001 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0002 max_iter: 3 random_seed: 1 solver_mode: CPU
snapshot_prefix: "{out}" snapshot: 0
"""
NATIVE, PLAIN = env.Choice(), env.Choice(plain=True)
OTHERS = {"flags without edits": env.Choice(), "x86-64-v3": env.Choice(march="x86-64-v3"), "x86-64": env.Choice(march="x86-64")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder to build in, with the net that every build trains."""
    home = Path(os.environ.get("SCRATCH") or tmp_path_factory.mktemp("layers")).absolute()
    home.mkdir(exist_ok=True)
    (home / "net.prototxt").write_text(text_format.MessageToString(on_dummy_data(8, 'type: "gaussian" std: 50')))
    return home


def build(home, name, choice, target, edited=True, options=()):
    """Build a target of Caffe as `make env` would; returns the folder it was built in, its source beside it."""
    source, built, log = home / f"{name}/source", home / f"{name}/build", home / f"{name}.log"
    flags, instructions = env.compiled_for(choice)
    if missing := lacking(instructions):
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    if not source.exists():
        source.parent.mkdir()
        (package,) = (ROOT / ".caffe/downloads").glob("*.dsc")
        env.run(["dpkg-source", "--no-check", "-x", package, source], log)
        apply_edits(source, edits_for("tuned") if edited and not choice.plain else edits_for())
    env.run(["cmake", "-S", source, "-B", built, *env.CMAKE_OPTIONS, "-DBUILD_python=OFF", *options,
             f"-DCMAKE_CXX_FLAGS={' '.join(flags)}"], log)  # fmt: skip
    env.run(["cmake", "--build", built, "--target", target, "--", f"-j{os.cpu_count()}"], log)
    return built


def weights(home, name, choice, edited=True):
    """The weights that three iterations of GoogLeNet end with, as bytes."""
    built = build(home, name, choice, "caffe.bin", edited)
    (home / f"{name}/solver.prototxt").write_text(SOLVER.format(net=home / "net.prototxt", out=home / f"{name}/end"))
    env.run([built / "tools/caffe", "train", "-solver", home / f"{name}/solver.prototxt"], home / f"{name}.log")
    return (home / f"{name}/end_iter_3.caffemodel").read_bytes()


@pytest.fixture(scope="module")
def plain(home):
    return weights(home, "plain", PLAIN)


def test_bvlcs_layer_tests_pass(home):
    built = build(home, "native", NATIVE, "test.testbin", options=[f"-DBUILD_only_tests={FILES}"])
    done = subprocess.run([built / "test/test.testbin", "--gtest_filter=-*GPU*"], cwd=home / "native/source", text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    (passed,) = re.findall(r"PASSED  \] (\d+) tests", done.stdout)
    assert int(passed) > 200 and re.search(r"PoolingLayerTest/0\.TestForwardMaxTopMask", done.stdout)
    print(f"\n{passed} of BVLC's tests passed")


def test_as_make_env_builds_it_the_weights_are_those_of_a_plain_build(home, plain):
    assert weights(home, "native", NATIVE) == plain


@pytest.mark.parametrize("name", OTHERS)
def test_so_they_are_with_these(home, plain, name):
    assert weights(home, name.replace(" ", "_"), OTHERS[name], edited=name != "flags without edits") == plain
