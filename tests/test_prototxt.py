"""The committed nets and solvers are those of the definition, and what the paper and the authors' files say."""

import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from caffe_pb2 import NetParameter, SolverParameter
from conftest import ROOT
from google.protobuf import text_format

from prototxt import own
from prototxt.generate import files, is_committed
from prototxt.records import methods, trunks
from prototxt.text import Enum, because, render

FILES = files()


@pytest.mark.parametrize("path", sorted(filter(is_committed, FILES)))
def test_committed_equals_generated(path):
    committed = ROOT / "prototxt" / path
    assert committed.exists() and committed.read_text() == FILES[path], f"{committed} is stale: make prototxt"


def test_what_is_not_committed_is_ignored_by_git():
    patterns = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if line.startswith("/prototxt/")]
    ignored = {path for path in FILES if any(fnmatch(f"prototxt/{path.rsplit('/', 1)[0]}", pattern) for pattern in patterns)}
    assert {path for path in FILES if not is_committed(path)} == ignored
    folder = ROOT / "prototxt"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.prototxt")} <= set(FILES)


def test_generate_writes_one_folder_on_request(tmp_path):
    shutil.copytree(ROOT / "prototxt", tmp_path / "prototxt", ignore=shutil.ignore_patterns("*.prototxt", "__pycache__"))
    code = "import sys; sys.path.insert(0, '.'); from prototxt.generate import main; main(sys.argv[1:])"
    ended = subprocess.run([sys.executable, "-c", code, "sop/triplet_256"], cwd=tmp_path, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split()) == [
        f"prototxt/sop/triplet_256/{name}.prototxt" for name in ("deploy", "solver", "train_val")
    ]
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.prototxt")} == set(ended.stdout.split())
    ended = subprocess.run([sys.executable, "-c", code, "sop/triplet_65"], cwd=tmp_path, text=True, capture_output=True)
    assert ended.returncode == 1 and "no net sop/triplet_65" in ended.stderr


def parse(path, message):
    return text_format.Parse(FILES[path], message)


@pytest.mark.parametrize("method", ["lifted", "contrastive", "triplet"])
def test_demo_net(method):
    net = parse(f"demo/{method}_64/train_val.prototxt", NetParameter())
    layers = {layer.name: layer for layer in net.layer}
    embedding = layers["fc_embedding"]
    assert embedding.inner_product_param.num_output == 64
    assert [(p.lr_mult, p.decay_mult) for p in embedding.param] == [(10, 1), (20, 0)]
    others = [layer for layer in net.layer if layer.type == "Convolution"]
    assert others and all([(p.lr_mult, p.decay_mult) for p in layer.param] == [(1, 1), (2, 0)] for layer in others)
    assert [(p.lr_mult, p.decay_mult) for p in layers["pair_batch"].param] == [(0, 0)]
    deploy = parse(f"demo/{method}_64/deploy.prototxt", NetParameter())
    trunk = list(net.layer)[1 : [layer.name for layer in net.layer].index("fc_embedding") + 1]
    assert [layer for layer in deploy.layer if layer.type != "Input"] == trunk


# README, "Baselines and sweeps": the best by Recall@1 on held-out training classes.
CHOSEN = {"lifted": (0.001, 0.05), "contrastive": (0.0003, 0.005), "triplet": (0.0003, 0.005)}


@pytest.mark.parametrize("method, base_lr, weight_decay", [(method, *values) for method, values in CHOSEN.items()])
def test_small_solvers(method, base_lr, weight_decay):
    """The demo's, and what own images are trained with: the same but for their length."""
    own_solver = own.files("x", trunks()["small"], methods()[method], 64, 64, True, "pairs.npz", 700, "folder")["solver.prototxt"]
    for solver, length in (
        (parse(f"demo/{method}_64/solver.prototxt", SolverParameter()), 3000),
        (text_format.Parse(own_solver, SolverParameter()), 700),
    ):
        assert (solver.base_lr, solver.weight_decay) == pytest.approx((base_lr, weight_decay))
        assert (solver.momentum, solver.clip_gradients, solver.gamma) == pytest.approx((0.9, 20, 0.1))
        assert (solver.lr_policy, solver.stepsize, solver.max_iter) == ("step", length * 4 // 5, length)
        assert solver.snapshot > 0 and solver.solver_mode == SolverParameter.CPU
    assert parse(f"demo/{method}_64/solver.prototxt", SolverParameter()).net == f"prototxt/demo/{method}_64/train_val.prototxt"


def test_googlenet_solver_of_own_images():
    """The authors' values for Online Products, a tenth for the last fifth."""
    solver = SolverParameter()
    files = own.files("x", trunks()["googlenet"], methods()["lifted"], 64, 256, True, "pairs.npz", 1000, "f")
    text_format.Parse(files["solver.prototxt"], solver)
    assert (solver.base_lr, solver.weight_decay, solver.momentum, solver.gamma) == pytest.approx((1e-4, 2e-4, 0.9, 0.1))
    assert (solver.stepsize, solver.max_iter) == (800, 1000)


def test_render():
    message = {
        "name": 'say "hi"',
        "type": Enum("MAX"),
        "on": True,
        "top": ["a", "b"],
        "param": because({"lr_mult": 10}, "why\nindeed"),
        "nested": {"deep": {"x": 1.5}},
    }
    assert render(message) == (
        "name: 'say \"hi\"'\ntype: MAX\non: true\ntop: \"a\"\ntop: \"b\"\n# why\n# indeed\nparam { lr_mult: 10 }\n"
        "nested {\n  deep { x: 1.5 }\n}"
    )  # fmt: skip
