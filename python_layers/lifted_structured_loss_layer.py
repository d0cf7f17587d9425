"""The Caffe layer around lifted_structured_loss.py, for `type: "Python"` in a prototxt."""

from embedding_loss_layer import EmbeddingLossLayer
from lifted_structured_loss import lifted_structured_loss


class LiftedStructuredLossLayer(EmbeddingLossLayer):
    """Lifted structured loss (equation 4 of the paper) of a batch of embeddings."""

    loss = staticmethod(lifted_structured_loss)

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
        super().setup(bottom, top)
