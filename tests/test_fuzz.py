"""Whatever bytes a file holds that comes from outside: a result, or an error in words. Never another exception."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from caffe_pb2 import NetParameter, SolverState
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.batch_plan import write_plan
from data_prep.build_set import read_groups
from data_prep.folder import Folder, read_list
from data_prep.paper_lists import read_cub, read_sop
from layer_support import read_param_str
from pair_batch import PARAMETERS, read_plan
from tools.caffe_files import check_state, check_weights
from tools.compare import one_run
from tools.model_folder import read_model
from tools.search_index import File, Index, read_index

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=4)), max_size=5)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, "a/b", "..", "\0"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=4,
)


def mutated(*valid):
    """Bytes: any, or one of `valid` with a few places cut out or written over."""

    def edit(content, edits):
        content = bytearray(content)
        for share, cut, new in edits:
            place = int(share * len(content))
            content[place : place + cut] = new
        return bytes(content)

    return st.binary(max_size=200) | st.builds(edit, st.sampled_from(valid), EDITS)


def other_json(valid):
    """The bytes of the object `valid` with anything in the place of one of its values, or mutated ones."""

    def places(value, path=()):
        below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path, *(place for key, one in below for place in places(one, (*path, key)))]

    def put(path, new):
        whole = json.loads(json.dumps(valid))
        if not path:
            return json.dumps(new).encode()
        at = whole
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = new
        return json.dumps(whole).encode()

    return st.builds(put, st.sampled_from(places(valid)), ANYTHING) | mutated(json.dumps(valid).encode())


def survives(call, *arguments):
    """Call it; what it raises must be an error in words."""
    try:
        call(*arguments)
    except (ValueError, OSError) as error:
        assert str(error)


LIST = b'path,class\r\na.png,"x, y"\r\nb.png,z\r\n'


@fuzz
@given(mutated(LIST))
@example(b"path,class\n/\0,x\n")
def test_lists_of_images(tmp_path, content):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_bytes(content)
    survives(read_list, tmp_path / "list.csv")


@fuzz
@given(mutated(LIST.replace(b"path,class", b"class,group").replace(b".png", b"")))
def test_groups(tmp_path, content):
    (tmp_path / "groups.csv").write_bytes(content)
    survives(read_groups, tmp_path / "groups.csv", Folder(tmp_path, {"a": [], "b": []}))


CUB = {
    "images.txt": b"1 001.A/a.jpg\n2 150.B/b.jpg\n",
    "image_class_labels.txt": b"1 1\n2 150\n",
    "classes.txt": b"1 001.A\n150 150.B\n",
}


@fuzz
@given(st.fixed_dictionaries({name: mutated(content) for name, content in CUB.items()}))
@example({**CUB, "classes.txt": b"1" * 5000 + b" 001.A\n"})  # more digits than Python turns into a number
def test_lists_of_cub(lists):
    survives(read_cub, lists)


EBAY = b"image_id class_id super_class_id path\n1 1 1 bicycle_final/111085122871_0.JPG\n2 2 1 bicycle_final/2_0.JPG\n"


@fuzz
@given(mutated(EBAY), mutated(EBAY))
def test_lists_of_online_products(train, test):
    survives(read_sop, {"Ebay_train.txt": train, "Ebay_test.txt": test})


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "pairs.npz"
    write_plan(path, np.arange(12) // 3, 4)
    return path.read_bytes()


@fuzz
@given(st.data())
def test_plans(tmp_path, plan, data):
    (tmp_path / "pairs.npz").write_bytes(data.draw(mutated(plan)))
    survives(read_plan, tmp_path / "pairs.npz", 12)


METRICS = {"recall_at": {"1": 0.5, "10": 0.75}, "map_at_r": 0.25, "lone_queries": 2, "nmi": 0.5, "f1": 0.2, "n": 24, "classes": 4,
           "clustering": {"method": "kmeans", "library": "faiss 1", "seed": 1, "clusters": 4, "wanted": 5, "converged": True},
           "about": {"set": {"name": "cub", "content": "c0ffee", "official": False, "doubts": ["few"]},
                     "training": {"solver": "prototxt/cub/lifted_64/solver.prototxt", "seed": 1, "iterations": 20, "base_lr": 0.01,
                                  "batch": 4, "iteration": 20, "data": {}, "weights": {"sha1": "405f", "bvlc_googlenet": False}}},
           "made_from": {"features": "c0ffee"}}  # fmt: skip
METRICS["baselines"] = {"untrained": {name: METRICS[name] for name in ("recall_at", "map_at_r", "nmi", "f1")}}


@fuzz
@given(other_json(METRICS))
@example(b"[" * 100_000)
@example(json.dumps({**METRICS, "map_at_r": []}).encode())
@example(json.dumps({**METRICS, "clustering": {**METRICS["clustering"], "library": None}}).encode())
@example(json.dumps({**METRICS, "about": {"training": {**METRICS["about"]["training"], "weights": {}}}}).encode())
def test_metrics(tmp_path, content):
    """And whatever is read is written about: what is let in has its types."""
    path = tmp_path / "lifted_64" / "seed1" / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    survives(one_run, [path], "cub")


MODEL = {"name": "a", "image_size": 16, "crop": 14, "resize": "plain", "upright": True, "blob": "fc_embedding", "dimensions": 8,
         "weights": "0" * 64, "net": "0" * 64, "mean": "0" * 64, "set": "small"}  # fmt: skip


@fuzz
@given(other_json(MODEL))
@example(b"[" * 100_000)
def test_models(tmp_path, content):
    (tmp_path / "model.json").write_bytes(content)
    survives(read_model, tmp_path)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index(tmp_path_factory.mktemp("index"), tmp_path_factory.getbasetemp(), tmp_path_factory.getbasetemp(), MODEL)
    index.vectors.add_with_ids(np.eye(3, 8, dtype=np.float32), np.arange(3))
    index.files, index.next_id = {number: File(f"{number}.png", 1, 1) for number in range(3)}, 3
    index.save()
    return index.home


@fuzz
@given(st.data())
def test_indexes(index, data):
    valid = json.loads((index / "index.json").read_text())
    (index / "index.json").write_bytes(data.draw(other_json(valid)))
    survives(read_index, index)
    (index / "index.json").write_text(json.dumps(valid))


@fuzz
@given(
    other_json({"lmdb": "a", "plan": "b", "crop": 14, "mirror": True, "margin": 1.0}).map(
        lambda text: text.decode(errors="replace")
    )
)
@example("[" * 100_000)
@example(f'{{"lmdb": "a", "plan": "b", "crop": 14, "margin": {10**400}}}')
def test_param_strs(text):
    survives(lambda: read_param_str(text, "Layer", margin=1.0, **PARAMETERS))


WEIGHTS = NetParameter()
for layer in ("conv", "fc"):
    blob = WEIGHTS.layer.add(name=layer).blobs.add(data=range(6))
    blob.shape.dim[:] = (2, 3)
STATE = SolverState(iter=3, learned_net="snapshot_iter_3.caffemodel", history=[layer.blobs[0] for layer in WEIGHTS.layer])


@fuzz
@given(mutated(WEIGHTS.SerializeToString()), mutated(STATE.SerializeToString()))
@example(WEIGHTS.SerializeToString(), STATE.SerializeToString())
@example(WEIGHTS.SerializeToString(), STATE.SerializeToString().replace(b"snapshot", b"\xff\xfe345678"))
def test_weights_and_states(tmp_path, weights, state):
    params = {name: [SimpleNamespace(data=np.zeros((2, 3), np.float32))] for name in ("conv", "fc")}
    net = SimpleNamespace(params=params, layer_dict=params)
    for name, content in (("caffemodel", weights), ("solverstate", state)):
        (tmp_path / f"snapshot_iter_3.{name}").write_bytes(content)
    survives(check_weights, net, tmp_path / "snapshot_iter_3.caffemodel")
    survives(check_state, net, tmp_path / "snapshot_iter_3.solverstate", 3)
