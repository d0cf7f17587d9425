"""What the losses' Caffe layers share: checks, copies, and the weight of the loss."""

import caffe
import numpy as np

from layer_support import read_param_str, shown, warn

LOOKED_AT = 10  # training batches, from the first, before a prototxt is taken for one that learns


class EmbeddingLossLayer(caffe.Layer):
    """A loss of a batch of embeddings and their class ids; a subclass has it as `loss(embeddings, labels, margin)`."""

    @shown
    def setup(self, bottom, top):
        name = type(self).__name__
        if len(bottom) != 2 or len(top) != 1:
            raise ValueError(f"{name}: needs two bottoms (embeddings, labels) and one top, not {len(bottom)} and {len(top)}")
        self.margin = read_param_str(self.param_str, name, margin=1.0)["margin"]
        self.batches, self.trains, self.teaches = 0, False, False

    @shown
    def reshape(self, bottom, top):
        if bottom[0].num != bottom[1].count:
            hint = "; are the two bottoms swapped? The embeddings come first" if bottom[0].num == bottom[1].num else ""
            raise ValueError(f"{type(self).__name__}: {bottom[0].num} embeddings but {bottom[1].count} labels{hint}")
        top[0].reshape()

    @shown
    def forward(self, bottom, top):
        top[0].data[...], self.gradient = self.loss(bottom[0].data, bottom[1].data, self.margin)
        if self.phase == caffe.TRAIN and self.batches < LOOKED_AT:
            self.look(bottom[1].data, top[0].diff)

    @shown
    def backward(self, top, propagate_down, bottom):
        self.trains |= bool(top[0].diff)
        if propagate_down[0]:
            bottom[0].diff[...] = self.gradient * top[0].diff
        if propagate_down[1]:
            bottom[1].diff[...] = 0  # asked for under force_backward: the loss does not vary with a class id

    def look(self, labels, weight):
        """Say, once, what in a prototxt lets a training run to its end and learn nothing.

        The top's diff holds the loss weight from the start. Without one Caffe never asks for a gradient, unless a later
        layer has a weight.
        """
        name, classes = type(self).__name__, np.unique(labels).size
        self.batches += 1
        self.trains |= bool(weight)
        self.teaches |= 1 < classes < labels.size
        if self.batches == 2 and not self.trains:
            warn(f"{name}: this loss trains nothing: its layer has no weight. Add this line to the layer:  loss_weight: 1")
        if self.batches == LOOKED_AT and not self.teaches:
            found = (
                "images of one class"
                if classes == 1
                else "an image of each class: each has a class of its own, no pair is positive"
            )
            warn(
                f"{name}: each of the first {LOOKED_AT} batches holds {found}, so the loss teaches nothing. It needs batches with "
                "several images of several classes, as PairBatchData reads them"
            )
