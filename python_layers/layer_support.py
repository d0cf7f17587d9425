"""What every Python layer here shares: reading its `param_str`, and errors that a person gets to see. No Caffe."""

import functools
import json
import math
import sys


def shown(method):
    """Print what a layer's method raises, where nobody else will.

    The stock `caffe` binary aborts on a Python exception without a word of it. In an interpreter embedded there,
    sys.argv is empty; elsewhere the exception reaches the caller and is his to show.
    """

    @functools.wraps(method)
    def call(self, *arguments):
        try:
            return method(self, *arguments)
        except Exception as error:
            if getattr(sys, "argv", None) in (None, [], [""]):
                print(f"ERROR in {type(self).__name__}.{method.__name__}: {error}", file=sys.stderr, flush=True)
            raise

    return call


def warn(text):
    """Say what does not stop a training and should not pass unseen; on standard error, where Caffe's own log is."""
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def read_param_str(text, layer, **parameters):
    """Parse `text` and return a dict with one entry for each of `parameters`.

    `parameters` maps a name to its default, or to a type when it must be given. A value must have the default's type
    (an integer may stand for a float), and numbers must be finite.

    Raises ValueError naming `layer`, the key, and what would be right.
    """
    known = ", ".join(parameters)
    try:
        given = json.loads(text or "{}", object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{layer}: param_str is not JSON ({error}): {_short(text)}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{layer}: param_str must be a JSON object, not {_short(text)}")
    if unknown := [name for name in given if name not in parameters]:
        raise ValueError(f"{layer}: unknown key {unknown[0]!r} in param_str; the known ones are {known}")
    values = {}
    for name, default in parameters.items():
        required = isinstance(default, type)
        kind = default if required else type(default)
        if name not in given:
            if required:
                raise ValueError(f"{layer}: param_str lacks {name!r}; its keys are {known}")
            values[name] = default
            continue
        value = given[name]
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 2**1023 else math.inf
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{layer}: {name!r} in param_str must be a {kind.__name__}, not {_short(given[name])}")
        if kind is str and ("\0" in value or (required and not value)):
            raise ValueError(f"{layer}: {name!r} in param_str must name a file, not {_short(value)}")
        values[name] = value
    return values


def _each_once(pairs):
    """The JSON object of these (name, value); ValueError for a name that is there twice, of which json would keep the last."""
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} is there twice")
        found[name] = value
    return found


def _short(value):
    """A value as a message shows it: its beginning is enough."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
