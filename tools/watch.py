"""Watching the numbers of a training: what is not finite stops it before the update, and what looks wrong is warned about."""

import json

import numpy as np
from caffe_pb2 import TEST

from data_prep.files import written_aside
from pair_batch import ImageDatabase, UnreadableBatch, read_plan

COLLAPSED = 1e-3  # all embeddings of a batch within this of each other: the margin is 1, nothing is told apart
STALLED = 0.25  # share of the training in which the loss has not come below its lowest mean
SHOWN = 4  # images of a batch that a message names


class Watch:
    """Looks at each iteration of a solver between the gradients and the update (Caffe's second callback).

    `net_message` is the NetParameter of the solver's net. A loss or a gradient that is not finite is a ValueError, which ends
    solver.step() before the update. The loss is looked at in each iteration, the gradients in one of `every`.
    """

    def __init__(self, solver, net_message, run, every=1):
        self.solver, self.net, self.run, self.every = solver, solver.net, run, every
        layers = [layer for layer in net_message.layer if layer.python_param.layer == "PairBatchData"]
        layers = [layer for layer in layers if TEST not in [rule.phase for rule in layer.include if rule.HasField("phase")]]
        self.data_layer = layers[0] if layers else None
        self.lowest, self.lowest_at, self.warned = np.inf, solver.iter, set()
        solver.add_callback(lambda: None, self.check)

    def check(self):
        loss = float(self.net.blobs["loss"].data)
        if not np.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        if self.solver.iter % self.every:
            return
        for name, blobs in self.net.params.items():
            if not all(np.isfinite(blob.diff).all() for blob in blobs):
                raise ValueError(f"the gradient of layer {name!r} is not finite")

    def stopped(self, error):
        """ValueError that says all about the iteration that `error` has stopped; the batch is written for inspection.

        Where the data layer could not read it, there is no batch, and nothing to say of the net.
        """
        if isinstance(error, UnreadableBatch):
            return ValueError(f"training stopped at iteration {self.solver.iter}: {error}\n"
                              "The last snapshot is kept. Make the set again, and the same command goes on.")  # fmt: skip
        path = self.run / f"stopped_after_{self.solver.iter}.npz"
        facts, batch = self._batch()
        with written_aside(path) as aside:
            np.savez(aside, **batch)
        return ValueError(f"training stopped at iteration {self.solver.iter}, before its update: {error}\n"
                          f"{facts}learning rate {self.solver.lr:g}; the batch is in {path}\n"
                          "The last snapshot is kept. A smaller base_lr usually helps.")  # fmt: skip

    def _batch(self):
        """What is known of the batch: a sentence, and arrays for the file."""
        embeddings, labels = (self.net.blobs[name].data.copy() for name in ("fc_embedding", "label"))
        batch = {"embeddings": embeddings, "labels": labels}
        facts = ""
        if self.data_layer is not None:
            parameters = json.loads(self.data_layer.python_param.param_str)
            number = int(self.net.params[self.data_layer.name][0].data[0]) - 1  # forward has counted on
            images = ImageDatabase(parameters["lmdb"])
            batches, _ = read_plan(parameters["plan"], len(images))
            keys = [images.keys[place].decode(errors="replace") for place in batches[number % len(batches)]]
            batch |= {"batch": number, "keys": np.array(keys), "data": self.net.blobs[self.data_layer.top[0]].data.copy()}
            facts = f"batch {number} of {parameters['plan']}: images {', '.join(keys[:SHOWN])}, ... of {parameters['lmdb']}; "
        finite = np.isfinite(embeddings.reshape(len(embeddings), -1)).all(axis=1)
        rows = embeddings.reshape(len(embeddings), -1)[finite].astype(np.float64)
        if len(rows) > 1:
            apart = min(float(np.sqrt(np.square(rows[i + 1 :] - rows[i]).sum(axis=1)).min()) for i in range(len(rows) - 1))
            facts += f"smallest distance {apart:.3g}; "
        return facts, batch

    def look(self, mean_loss, iterations):
        """Sentences, each once in a training, on a batch whose embeddings are all alike and on a loss that falls no more.

        `mean_loss` is that of the iterations since the last look, `iterations` the length of the training.
        """
        embeddings = self.net.blobs["fc_embedding"].data.reshape(len(self.net.blobs["fc_embedding"].data), -1)
        if mean_loss < self.lowest:
            self.lowest, self.lowest_at = mean_loss, self.solver.iter
        found = {}
        if np.linalg.norm(np.ptp(embeddings, axis=0)) < COLLAPSED:
            found["collapsed"] = (f"all embeddings of a batch lie within {COLLAPSED:g} of each other: the net has collapsed and "
                                  "tells nothing apart. Another base_lr, or less weight_decay, may help")  # fmt: skip
        if self.solver.iter - self.lowest_at >= STALLED * iterations:
            found["stalled"] = (f"the loss has not fallen below {self.lowest:.4g}, its mean at iteration {self.lowest_at}, for "
                                f"{self.solver.iter - self.lowest_at} iterations")  # fmt: skip
        new = {name: text for name, text in found.items() if name not in self.warned}
        self.warned |= new.keys()
        return [f"WARNING at iteration {self.solver.iter}: {text}" for text in new.values()]
