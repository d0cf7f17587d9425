"""The committed nets and solvers are those of the definition, and what the paper and the authors' files say."""

import pytest
from caffe_pb2 import NetParameter, SolverParameter
from conftest import ROOT
from google.protobuf import text_format

from prototxt.generate import files
from prototxt.text import Enum, because, render

FILES = files()


@pytest.mark.parametrize("path", sorted(FILES))
def test_committed_equals_generated(path):
    committed = ROOT / "prototxt" / path
    assert committed.exists() and committed.read_text() == FILES[path], f"{committed} is stale: make prototxt"


def test_no_other_prototxt_is_committed():
    folder = ROOT / "prototxt"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.prototxt")} == set(FILES)


def parse(path, message):
    return text_format.Parse(FILES[path], message)


def test_demo_net():
    net = parse("demo/lifted_64/train_val.prototxt", NetParameter())
    layers = {layer.name: layer for layer in net.layer}
    embedding = layers["fc_embedding"]
    assert embedding.inner_product_param.num_output == 64
    assert [(p.lr_mult, p.decay_mult) for p in embedding.param] == [(10, 1), (20, 0)]
    others = [layer for layer in net.layer if layer.type == "Convolution"]
    assert others and all([(p.lr_mult, p.decay_mult) for p in layer.param] == [(1, 1), (2, 0)] for layer in others)
    assert [(p.lr_mult, p.decay_mult) for p in layers["pair_batch"].param] == [(0, 0)]
    assert layers["loss"].loss_weight == [1]
    deploy = parse("demo/lifted_64/deploy.prototxt", NetParameter())
    trunk = [layer for layer in net.layer if layer.type != "Python"]
    assert [layer for layer in deploy.layer if layer.type != "Input"] == trunk


def test_demo_solver():
    solver = parse("demo/lifted_64/solver.prototxt", SolverParameter())
    assert solver.momentum == pytest.approx(0.9)
    assert solver.stepsize < solver.max_iter and solver.snapshot > 0
    assert solver.net == "prototxt/demo/lifted_64/train_val.prototxt"
    assert solver.solver_mode == SolverParameter.CPU


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
