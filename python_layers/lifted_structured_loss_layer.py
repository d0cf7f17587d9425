"""The Caffe layer around lifted_structured_loss.py, for `type: "Python"` in a prototxt."""

import caffe

from layer_support import read_param_str, shown
from lifted_structured_loss import lifted_structured_loss


class LiftedStructuredLossLayer(caffe.Layer):
    """Lifted structured loss (equation 4 of the paper) of a batch of embeddings."""

    @shown
    def setup(self, bottom, top):
        """Bottoms: embeddings (m, c) or (m, c, 1, 1), not normalised; labels (m,), class ids. Top: the loss, a scalar.

        param_str, JSON:
            margin   float, default 1.0: the paper's alpha.

        To paste (a Python layer is a loss only if its loss_weight says so)::

            layer {
              name: "loss"
              type: "Python"
              bottom: "fc_embedding"
              bottom: "label"
              top: "loss"
              loss_weight: 1
              python_param {
                module: "lifted_structured_loss_layer"
                layer: "LiftedStructuredLossLayer"
                param_str: '{"margin": 1.0}'
              }
            }
        """
        if len(bottom) != 2 or len(top) != 1:
            raise ValueError("LiftedStructuredLossLayer: needs two bottoms (embeddings, labels) and one top, "
                             f"not {len(bottom)} and {len(top)}")  # fmt: skip
        self.margin = read_param_str(self.param_str, "LiftedStructuredLossLayer", margin=1.0)["margin"]

    @shown
    def reshape(self, bottom, top):
        if bottom[0].num != bottom[1].count:
            raise ValueError(f"LiftedStructuredLossLayer: {bottom[0].num} embeddings but {bottom[1].count} labels")
        top[0].reshape()

    @shown
    def forward(self, bottom, top):
        top[0].data[...], self.gradient = lifted_structured_loss(bottom[0].data, bottom[1].data, self.margin)

    @shown
    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.gradient * top[0].diff
        if propagate_down[1]:
            bottom[1].diff[...] = 0  # asked for under force_backward: the loss does not vary with a class id
