"""How fast the parts are, each as a ratio against a peer in the same run. `make bench`.

Prints a table and writes it to runs/bench.json: medians over a few calls. PyTorch and pytorch-metric-learning are
peers where they are installed. Evaluation has a benchmark of its own, tools/bench_eval.py.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

from tools.blas import choose_kernels

KERNELS = choose_kernels()  # before Caffe is imported

import caffe
import numpy as np
from caffe_pb2 import NetParameter
from dummy_net import GOOGLENET, on_dummy_data
from google.protobuf import text_format
from PIL import Image
from test_lifted_structured_loss import literal

from data_prep.batch_plan import MAX_POSITIVE_PAIRS, write_plan
from data_prep.build_set import build
from data_prep.files import written_aside
from data_prep.image import load_image
from data_prep.write_set import LmdbWriter, lmdb_bytes, mean_bytes
from lifted_structured_loss import lifted_structured_loss
from tools.caffe_files import read_text
from tools.versions import caffe_blas

# Images a batch, dimensions, images a class.
LOSSES = ((128, 64, 2), (128, 512, 2), (256, 128, 2), (128, 512, 8), (1024, 512, 2))
LITERAL_TO = 256  # images a batch, for the loops
IMAGE_IN_TORCH = 100 << 20  # bytes that an iteration takes for an image
PAPER_SETS = {"CUB-200-2011": (5864, 100), "Cars196": (8054, 98), "Online Products": (59551, 11318)}  # training images, classes


def seconds(work, calls):
    """The median of some calls, after one that is not counted."""
    work()
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


class Table:
    """Rows of (what, size, ours, peer, the peer's), printed as they come; `unit` is s or images/s."""

    def __init__(self):
        self.rows = []
        print("| what | size | here | peer | peer's | ratio |\n|---|---|---:|---|---:|---:|", flush=True)

    def add(self, what, size, ours, peer, theirs, unit="s", ratio=None):
        """Shown is how many times as fast as the peer it is, or `ratio` where that is given: a share of the peer's."""
        faster = theirs / ours if unit == "s" else ours / theirs
        shown_ratio = f"{ratio:.3g} of it" if ratio else f"{faster:.3g} times as fast"
        ratio = ratio or faster
        self.rows.append({"what": what, "size": size, "here": ours, "peer": peer, "peers": theirs, "unit": unit, "ratio": ratio})
        shown = [f"{1000 * value:,.3g} ms" if unit == "s" else f"{value:,.3g} {unit}" for value in (ours, theirs)]
        print(f"| {what} | {size} | {shown[0]} | {peer} | {shown[1]} | {shown_ratio} |", flush=True)


def metric_learning_loss(x, y):
    """A call of pytorch-metric-learning's loss and gradient, and the loss; or None where it is not installed."""
    try:
        import torch
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import LiftedStructureLoss
    except ImportError:
        return None
    loss = LiftedStructureLoss(neg_margin=1, pos_margin=0, distance=LpDistance(normalize_embeddings=False))
    embeddings, labels = torch.tensor(x, requires_grad=True), torch.tensor(y)

    def work():
        embeddings.grad = None
        value = loss(embeddings, labels)
        value.backward()
        return float(value)

    return work


def bench_loss(table):
    for m, c, each in LOSSES:
        random = np.random.default_rng(0)
        x, y = (random.normal(size=(m, c)) * 0.1).astype(np.float32), np.arange(m) // each
        double, size = x.astype(np.float64), f"m = {m}, c = {c}, {each} a class"
        calls = 50 if m < 1000 else 5
        ours = seconds(lambda x=x, y=y: lifted_structured_loss(x, y), calls)
        table.add("lifted loss and gradient", size, ours, "its two matrix products alone",
                  seconds(lambda x=double: (x @ x.T) @ x, calls))  # fmt: skip
        if m <= LITERAL_TO:
            table.add("the same", size, ours, "literal loops", seconds(lambda x=x, y=y: literal(x, y), 1))
        if peer := metric_learning_loss(x, y):
            value, expected = peer(), float(lifted_structured_loss(x, y)[0])
            same = "" if abs(value - expected) < 1e-3 * expected else f" (its loss is {value:.4g}, ours {expected:.4g})"
            table.add("the same", size, ours, f"pytorch-metric-learning{same}", seconds(peer, 3 if m <= LITERAL_TO else 1))


def make_data(folder, count, size, batches):
    """An LMDB of noise, its mean and plans for these batches, as a set's folder has them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    writer = LmdbWriter(folder / "train.lmdb", count, size)
    for place in range(count):
        writer.put(place, random.integers(0, 256, (3, size, size), np.uint8), place // 8)
    writer.close()
    (folder / "mean.binaryproto").write_bytes(mean_bytes(np.full((3, size, size), 120, np.float32)))
    for batch in batches:
        with contextlib.redirect_stdout(io.StringIO()):
            write_plan(folder / f"pairs_{batch}.npz", np.arange(count) // 8, batch)


def load(text):
    """A caffe.Net for training of a NetParameter, or of its text."""
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(text if isinstance(text, str) else text_format.MessageToString(text))
        file.flush()
        return caffe.Net(file.name, caffe.TRAIN)


def pair_batches(folder, crop, batch):
    return json.dumps({"crop": crop, "lmdb": f"{folder}/train.lmdb", "mean_file": f"{folder}/mean.binaryproto", "mirror": True,
                       "plan": f"{folder}/pairs_{batch}.npz"})  # fmt: skip


def bench_data_layer(table, home):
    """On one core: Caffe's own layer has a thread of its own."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for size, crop in ((64, 56), (128, 112), (256, 227)):
        ours = load(f"""layer {{ name: "data" type: "Python" top: "data" top: "label" python_param {{
            module: "pair_batch_data_layer" layer: "PairBatchData"
            param_str: '{pair_batches(home / str(size), crop, 128)}' }} }}""")
        theirs = load(f"""layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ backend: LMDB batch_size: 128
            source: "{home / str(size)}/train.lmdb" }} transform_param {{ crop_size: {crop} mirror: true
            mean_file: "{home / str(size)}/mean.binaryproto" }} }}""")
        rates = [1280 / seconds(lambda net=net: [net.forward() for _ in range(10)], 5) for net in (ours, theirs)]
        table.add("pair batches alone, one core", f"{crop} of {size} pixels", rates[0], "Caffe's Data layer", rates[1], "images/s")
    os.sched_setaffinity(0, cores)


def bench_iteration(table, home, batches):
    """Forward and backward of GoogLeNet, from the committed net."""
    for batch in batches:
        ours, theirs = read_text(GOOGLENET, NetParameter()), on_dummy_data(batch)
        data = next(layer for layer in ours.layer if layer.python_param.layer == "PairBatchData")
        data.python_param.param_str = pair_batches(home / "256", 227, batch)
        nets = [load(net) for net in (ours, theirs)]
        for net in nets:
            net.forward()
        nets[1].blobs["data"].data[...] = nets[0].blobs["data"].data  # which its layer, of a constant, leaves as they are
        works = [lambda net=net: seconds_of_one(net) for net in nets]
        peers = {"the same without our layers": works[1]}
        if not (enough := available() > batch * IMAGE_IN_TORCH):
            print(f"(batch {batch}: PyTorch not measured, too little memory beside the two nets)")
        for name, layout in (("PyTorch", None), ("PyTorch, channels last", "channels_last")):
            if enough and (work := torch_iteration(nets[1], theirs, layout)):
                peers[name] = work
        found = {name: [] for name in ("ours", *peers)}
        for _ in range(5):
            for name, work in {"ours": works[0], **peers}.items():
                found[name].append(work())
        medians = {name: statistics.median(times) for name, times in found.items()}
        mine = medians.pop("ours")
        for name, other in medians.items():
            size = f"batch {batch}, {batch / mine:.3g} images/s"
            table.add("GoogLeNet, an iteration", size, mine, name, other, ratio=mine / other if "our layers" in name else None)
        wait = seconds(lambda net=nets[0]: net._forward(0, 0), 5)
        table.add("of it, waiting for data", f"batch {batch}", wait, "the iteration", mine, ratio=wait / mine)


def available():
    """Bytes of memory that are free to take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def torch_iteration(net, message, layout):
    """A call that returns the seconds of an iteration of the same net, with its weights, in PyTorch, or None where that is not.

    Raises ValueError where what it computes is not what Caffe does.
    """
    try:
        import torch
    except ImportError:
        return None
    from torch.nn import functional

    layout = getattr(torch, layout or "contiguous_format")
    weights = {name: [torch.tensor(blob.data) for blob in blobs] for name, blobs in net.params.items()}
    weights = {name: [weight.to(memory_format=layout) if weight.ndim == 4 else weight for weight in blobs]
               for name, blobs in weights.items()}  # fmt: skip
    for blobs in weights.values():
        for weight in blobs:
            weight.requires_grad_()
    data = torch.tensor(net.blobs["data"].data).to(memory_format=layout)

    def convolution(p, x, w, b):
        return functional.conv2d(x, w, b, stride=p.stride[0] if p.stride else 1, padding=p.pad[0] if p.pad else 0)

    def pooling(p, x):
        if p.pool == p.AVE:
            return functional.avg_pool2d(x, p.kernel_size, p.stride)
        return functional.max_pool2d(x, p.kernel_size, p.stride, p.pad, ceil_mode=True)

    def run_layer(layer, tops):
        inputs, parameters = [tops[name] for name in layer.bottom], weights.get(layer.name, [])
        if layer.type == "Convolution":
            return convolution(layer.convolution_param, *inputs, *parameters)
        if layer.type == "Pooling":
            return pooling(layer.pooling_param, *inputs)
        if layer.type == "LRN":
            p = layer.lrn_param
            return functional.local_response_norm(*inputs, p.local_size, p.alpha, p.beta, p.k)
        if layer.type == "InnerProduct":
            return functional.linear(inputs[0].flatten(1), *parameters)
        return {"ReLU": functional.relu_, "Concat": lambda *x: torch.cat(x, 1), "Dropout": lambda x: x}[layer.type](*inputs)

    def forward():
        tops = {"data": data}
        for layer in message.layer:
            if layer.type not in ("DummyData", "EuclideanLoss"):
                tops[layer.top[0]] = run_layer(layer, tops)
        return tops

    def work():
        start = time.perf_counter()
        forward()["fc_embedding"].square().sum().backward()
        return time.perf_counter() - start

    net.forward()
    last = "inception_5b/output"  # before what drops out at random
    expected = net.blobs[last].data
    with torch.no_grad():
        found = forward()[last].numpy()
    if np.abs(found - expected).max() > 1e-3 * np.abs(expected).max():
        raise ValueError("PyTorch's net is not that of Caffe")
    return work


def seconds_of_one(net):
    start = time.perf_counter()
    net.forward()
    net.backward()
    return time.perf_counter() - start


def bench_build(table, home, counts):
    random = np.random.default_rng(0)
    for count in counts:
        folder = home / f"jpegs{count}"
        for place in range(count):
            (folder / str(place // 10)).mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / str(place // 10) / f"{place}.jpg", quality=92)
        files = sorted(folder.rglob("*.jpg"))

        def decode(files=files):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda file: load_image(file, 256), files))

        def ours(folder=folder, home=home, count=count):
            out = Path(tempfile.mkdtemp(dir=home))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                build(folder, out, 256, None, 0.5, 0.0, 1, 16, MAX_POSITIVE_PAIRS, False)

        rates = [count / seconds(work, 3) for work in (ours, decode)]
        table.add("LMDBs from JPEGs of 500x375", f"{count} images", rates[0], "decoding and resizing", rates[1], "images/s")


def bench_disk(table):
    """Computed, as if all classes had equally many images."""
    for name, (images, classes) in PAPER_SETS.items():
        each = images / classes
        positive = min(classes * each * (each + 1) / 2, MAX_POSITIVE_PAIRS)
        pairs = positive + images * -(-positive // images)
        sizes = [lmdb_bytes(count, 256) / 1e9 for count in (images, 2 * pairs)]
        table.add("training LMDB (computed)", name, sizes[0], "the authors' layout", sizes[1], "GB", ratio=sizes[0] / sizes[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--batches", default="32,64,128", help="images a batch of GoogLeNet (default 32,64,128)")
    arguments = parser.parse_args()
    caffe.set_mode_cpu()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    machine = f"{model}, {os.cpu_count()} cores; Caffe's BLAS {', '.join(map(str, caffe_blas() or ()))}"
    print(f"{machine}\n{KERNELS or ''}\n")
    batches = [int(batch) for batch in arguments.batches.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        home, table = Path(folder), Table()
        for size in (64, 128, 256):
            make_data(home / str(size), 512, size, {128, *batches})
        bench_loss(table)
        bench_data_layer(table, home)
        bench_build(table, home, (600, 1200, 2400))
        bench_disk(table)
        bench_iteration(table, home, batches)
    with written_aside(arguments.out) as aside:
        aside.write_text(json.dumps({"machine": machine, "rows": table.rows}, indent=2) + "\n")


if __name__ == "__main__":
    run("bench", main)
