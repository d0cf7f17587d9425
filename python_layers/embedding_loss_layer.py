"""What the losses' Caffe layers share: checks, copies, and the weight of the loss."""

import caffe

from layer_support import read_param_str, shown


class EmbeddingLossLayer(caffe.Layer):
    """A loss of a batch of embeddings and their class ids; a subclass has it as `loss(embeddings, labels, margin)`."""

    @shown
    def setup(self, bottom, top):
        name = type(self).__name__
        if len(bottom) != 2 or len(top) != 1:
            raise ValueError(f"{name}: needs two bottoms (embeddings, labels) and one top, not {len(bottom)} and {len(top)}")
        self.margin = read_param_str(self.param_str, name, margin=1.0)["margin"]

    @shown
    def reshape(self, bottom, top):
        if bottom[0].num != bottom[1].count:
            raise ValueError(f"{type(self).__name__}: {bottom[0].num} embeddings but {bottom[1].count} labels")
        top[0].reshape()

    @shown
    def forward(self, bottom, top):
        top[0].data[...], self.gradient = self.loss(bottom[0].data, bottom[1].data, self.margin)

    @shown
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.gradient * top[0].diff
        if propagate_down[1]:
            bottom[1].diff[...] = 0  # asked for under force_backward: the loss does not vary with a class id
