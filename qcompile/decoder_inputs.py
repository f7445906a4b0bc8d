"""Inputs of a decoder that feeds may leave out: the mask, the positions, and a cache that holds nothing yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

_EMPTY, ONES, POSITIONS = "empty", "ones", "positions"
"""What an input may be."""

ABSENT = "qcompile.absent"
"""Key of the metadata of an input that says what it is where a feed does not have it, `ONES` for example."""


def complete(inputs: Sequence[ir.Value], feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the feed with the inputs that it leaves out and that say what they are then, in the order of the inputs.

    "empty": zeros of no length on the axis called past. "ones": int64 [batch, past + sequence]. "positions": int64
    [batch, sequence], counted on from the cache. Sizes are those of other inputs with the same names of axes; does not
    add an input whose sizes nothing tells.

    Args:
        inputs: of the model, with their metadata.
        feed: arrays by the names of inputs.
    """
    sizes = {"past": 0}
    for value in inputs:
        array = feed.get(str(value.name))
        if array is not None and value.shape is not None and array.ndim == len(value.shape):
            sizes.update((str(dim), size) for dim, size in zip(value.shape, array.shape, strict=True))
    if "sequence" in sizes:
        sizes["past + sequence"] = sizes["past"] + sizes["sequence"]
    full = {}
    for value in inputs:
        name, make = str(value.name), _MADE.get(value.metadata_props.get(ABSENT, ""))
        if name in feed:
            full[name] = feed[name]
        elif make is not None and value.shape is not None and value.dtype is not None:
            shape = [dim if isinstance(dim, int) else sizes.get(str(dim)) for dim in value.shape]
            known = [size for size in shape if size is not None]
            if len(known) == len(shape):
                full[name] = make(known, sizes["past"]).astype(value.dtype.numpy())
    return full


def is_computed(value: ir.Value) -> bool:
    """Whether an input follows from the sizes of others, as the mask and the positions of a decoder do."""
    return value.metadata_props.get(ABSENT, _EMPTY) != _EMPTY


def _positions(shape: Sequence[int], past: int) -> np.ndarray:
    return np.broadcast_to(np.arange(past, past + shape[-1]), shape)


_MADE: Mapping[str, Callable[[Sequence[int], int], np.ndarray]] = {
    _EMPTY: lambda shape, _: np.zeros(shape),
    ONES: lambda shape, _: np.ones(shape),
    POSITIONS: _positions,
}
