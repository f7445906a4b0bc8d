"""Is a feed what a model takes? The same question, and the same answer, for every runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qcompile.errors import InputError
from qcompile.misspelt import nearest
from qcompile.session import Feed

TEXT = "object"
"""Type of an input that takes texts: arrays of Python objects, of str or of bytes."""


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a model says about one of its inputs.

    Attributes:
        dtype: numpy name of its type, `TEXT` for texts; None where the runtime takes no
            numpy array of it: then nothing can be fed.
        shape: its sizes, None for those that may change; None where the rank may change.
    """

    dtype: str | None
    shape: Sequence[int | None] | None


def check_feed(feed: Feed, inputs: Mapping[str, Declared]) -> None:
    """Raise InputError for a missing or unknown input, and for a type or shape that is not the input's.

    Args:
        feed: input name -> array; anything else is refused.
        inputs: every input of the model.
    """
    if not isinstance(feed, Mapping) or not all(isinstance(name, str) for name in feed):
        mend = f"Give {', '.join(inputs)} by name: {{name: array}}"
        raise InputError(f"feed of type {type(feed).__name__}", "it is not {name: array}", mend)
    for name in feed:
        if name not in inputs:
            raise InputError(f"input {name!r}", "the model has no such input", _mend(name, list(inputs)))
    for name, declared in inputs.items():
        if name not in feed:
            raise InputError(f"input {name!r}", "it is missing in the feed", f"Feed all of {', '.join(inputs)}")
        _check(name, feed[name], declared)


def _mend(name: str, names: list[str]) -> str:
    if not names:
        return "The model takes no inputs"
    near = nearest(name, names)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"The inputs are {', '.join(names)}"


def _check(name: str, array: object, declared: Declared) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"input {name!r}", f"it is a {type(array).__name__}", "Feed a numpy array")
    if declared.dtype is None:
        reason = "the runtime takes no numpy array of its type, such as bfloat16"
        raise InputError(f"input {name!r}", reason, "Give the model an input of float32 and a Cast behind it")
    if array.dtype.kind not in "OSU" if declared.dtype == TEXT else array.dtype != np.dtype(declared.dtype):
        mend = f"Use array.astype({declared.dtype!r})"
        raise InputError(f"input {name!r}", f"its type is {array.dtype}, not {declared.dtype}", mend)
    shape = declared.shape
    if shape is None:
        return
    fits = len(array.shape) == len(shape) and all(
        size in (None, given) for size, given in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        reason = f"its shape is {list(array.shape)}, not [{wanted}]"
        raise InputError(f"input {name!r}", reason, "Reshape or pad the array")
