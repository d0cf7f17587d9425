"""What a method and a trunk are: one file each in methods/ and trunks/, which holds one record. Nothing else names them."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prototxt.layers import fc_embedding


@dataclass(frozen=True)
class Trunk:
    """A net from the blob `data` to the blob that the embedding is computed from."""

    name: str  # the file's
    title: str  # in tables and on pages
    about: str  # what a net's file says of it
    layers: Callable[[], list]  # from `data`, (n, 3, crop, crop), to `last`
    last: str  # blob
    image: int  # pixels a side of the stored images,
    crop: int  # and of what the net sees of them
    least: int | None  # the smallest crop that it takes; None: its own alone
    mean: str  # image that is subtracted where it starts from pretrained weights: imagenet, or own (of the training images)
    filler: object  # of the embedding layer's weights, with its reason
    passes: int  # over own training images, where nothing is asked for,
    iterations: tuple[int, int]  # between so many iterations
    threads: int | None = None  # that train fastest; None: all

    def embedding(self, dimensions):
        """The last layer of every net, which makes the embedding (n, dimensions) from `last`."""
        return fc_embedding(self.last, dimensions, self.filler)


@dataclass(frozen=True)
class Method:
    """A loss of a batch of embeddings, and what it is trained with."""

    name: str  # the file's
    title: str  # of what it trains, in tables and on pages
    style: tuple[str, str]  # colour and marker in plots
    plan: str  # kind of batch plan, data_prep/batch_plan.py
    loss: Callable[[], list]  # layers from the blobs `fc_embedding` and `label` to the blob `loss`
    released_solver: bool = True  # whether its authors published a solver
    place: int = 9  # among the others, in tables and sweeps
    small: Mapping = field(default_factory=dict)  # solver values with the small net, chosen on held-out classes


def methods():
    """{name: Method} of every file in methods/, in their places."""
    from prototxt import methods as folder

    found = _found(folder, "METHOD")
    return dict(sorted(found.items(), key=lambda item: (item[1].place, item[0])))


def trunks():
    """{name: Trunk} of every file in trunks/."""
    from prototxt import trunks as folder

    return _found(folder, "TRUNK")


def _found(folder, record):
    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    return {name: getattr(importlib.import_module(f"{folder.__name__}.{name}"), record) for name in names}
