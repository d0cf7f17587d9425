"""The Caffe layer around triplet_loss.py, for `type: "Python"` in a prototxt."""

from embedding_loss_layer import EmbeddingLossLayer
from triplet_loss import triplet_loss


class TripletLossLayer(EmbeddingLossLayer):
    """Triplet loss (equation 2 of the paper) of a batch of embeddings."""

    loss = staticmethod(triplet_loss)

    def setup(self, bottom, top):
        """Bottoms: embeddings (m, c) or (m, c, 1, 1), not normalised; labels (m,), class ids. Top: the loss, a scalar.

        The batch holds m/3 anchors, then their positives, then their negatives.

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
                module: "triplet_loss_layer"
                layer: "TripletLossLayer"
                param_str: '{"margin": 1.0}'
              }
            }
        """
        super().setup(bottom, top)
