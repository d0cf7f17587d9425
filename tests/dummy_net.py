"""GoogLeNet for CUB without layers of ours: what Caffe alone makes of it."""

from caffe_pb2 import NetParameter
from google.protobuf import text_format

from tools.caffe_files import read_text

GOOGLENET = "prototxt/cub/lifted_64/train_val.prototxt"


def on_dummy_data(batch, data_filler='type: "constant"'):
    """The committed net as a NetParameter, fed by DummyData and scored by EuclideanLoss."""
    net = read_text(GOOGLENET, NetParameter())
    dummy = {
        "PairBatchData": f"""type: "DummyData" top: "data" top: "label" dummy_data_param {{
            shape {{ dim: {batch} dim: 3 dim: 227 dim: 227 }} shape {{ dim: {batch} }}
            data_filler {{ {data_filler} }} data_filler {{ type: "constant" }} }}""",
        "LiftedStructuredLossLayer": 'type: "EuclideanLoss" bottom: "fc_embedding" bottom: "wanted" top: "loss"',
    }
    for layer in net.layer:
        if layer.type == "Python":
            name, text = layer.name, dummy[layer.python_param.layer]
            layer.Clear()
            text_format.Parse(f'name: "{name}" {text}', layer)
    text_format.Parse(f"""layer {{ name: "wanted" type: "DummyData" top: "wanted" dummy_data_param {{
        shape {{ dim: {batch} dim: 64 }} }} }}""", net)  # fmt: skip
    layers = sorted(net.layer, key=lambda layer: layer.type != "DummyData")  # the target is needed before the loss
    del net.layer[:]
    net.layer.extend(layers)
    return net
