"""The Caffe layer around pair_batch.py, for `type: "Python"` in a prototxt."""

import caffe

from layer_support import read_param_str, shown
from pair_batch import PARAMETERS, PairBatches


class PairBatchData(caffe.Layer):
    """Training batches of image pairs, read by a batch plan from an LMDB that holds each image once."""

    @shown
    def setup(self, bottom, top):
        """No bottoms. Tops: data (m, channels, crop, crop), mean subtracted; label (m,), class ids.

        Batch number i, counted from 0, is row i mod n of the plan. In TRAIN each image is cropped and mirrored at
        random, as a function of (seed, i) alone; i is kept in the layer's own blob, so Caffe's snapshots carry it and a
        resumed training goes on at the right batch. For that the layer's name must not be one that the starting
        weights have. In TEST all crops are centre crops, not mirrored, and i is counted apart from the blob: Caffe
        shares the blobs of layers of one name between the training net and its test nets.

        param_str, JSON:
            lmdb        path, required: raw Datums, uint8, as data_prep and convert_imageset write them
            plan        path, required: pairs.npz from data_prep
            crop        int, required: height and width of what the net sees, pixels
            mean_file   path, default none: BlobProto of the LMDB's image size, as Caffe's compute_image_mean writes
            mirror      bool, default true
            seed        int, default 1

        To paste (the counter must not be trained)::

            layer {
              name: "pair_batch"
              type: "Python"
              top: "data"
              top: "label"
              param { lr_mult: 0 decay_mult: 0 }
              python_param {
                module: "pair_batch_data_layer"
                layer: "PairBatchData"
                param_str: '{"crop": 227, "lmdb": "train.lmdb", "mean_file": "mean.binaryproto", "plan": "pairs.npz"}'
              }
            }
        """
        if len(bottom) != 0 or len(top) != 2:
            raise ValueError(f"PairBatchData: has no bottom and two tops (data, label), not {len(bottom)} and {len(top)}")
        parameters = read_param_str(self.param_str, "PairBatchData", **PARAMETERS)
        self.batches = PairBatches(random=self.phase == caffe.TRAIN, **parameters)
        self.blobs.add_blob(1)
        self.blobs[0].data[...] = 0
        self.tested = 0
        top[0].reshape(*self.batches.shape)
        top[1].reshape(self.batches.shape[0])

    def reshape(self, bottom, top):
        pass  # the plan fixes the shapes, and setup has set them

    @shown
    def forward(self, bottom, top):
        if self.phase == caffe.TEST:
            self.batches.read(self.tested, top[0].data, top[1].data)
            self.tested += 1
            return
        counter = self.blobs[0].data
        if counter[0] != int(counter[0]):
            raise ValueError(
                f"PairBatchData: the batch counter is {counter[0]}: the solver trains it as if it were a weight. Add this "
                "line to the layer:  param { lr_mult: 0 decay_mult: 0 }"
            )
        self.batches.read(int(counter[0]), top[0].data, top[1].data)
        counter[0] += 1

    def backward(self, top, propagate_down, bottom):
        pass  # images have no gradient
