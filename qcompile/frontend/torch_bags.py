"""torch.nn.EmbeddingBag as operators of ONNX that runtimes take: torch's exporter writes a loop that they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset18
"""What the operators are called by; their types do not know of lists and numbers, which onnxscript makes constants."""

_SUM, _MEAN, _MAX = range(3)
"""torch's numbers of what is made of the rows of a bag."""


def translations() -> dict[Any, Callable[..., Any]]:
    """Return torch's operator -> its translation, for `custom_translation_table` of torch.onnx.export.

    The exporter's own loop declares a sequence as a tensor (torch 2.13). Does not apply to what torch keeps for
    gradients, which is returned in a form of its own.
    """
    return {
        torch.ops.aten._embedding_bag.default: _translate,
        torch.ops.aten._embedding_bag_forward_only.default: _translate,
        torch.ops.aten.embedding_bag.padding_idx: _translate,
    }


def _translate(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,  # noqa: ARG001
    mode: int = _SUM,
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = -1,
) -> Any:
    """Add the rows of each bag to its place, or take the largest; what else torch returns is for gradients alone.

    The exporter writes torch's shapes to what is returned, so the latter are values of their own, which nobody reads.

    Args:
        weight: float [rows, width].
        indices: of rows, [count].
        offsets: where each bag begins, in order.
        scale_grad_by_freq: of gradients.
        mode: sum, mean or max.
        sparse: of gradients.
        per_sample_weights: [count], for sums; None: 1.
        include_last_offset: the last of the offsets is where the last bag ends.
        padding_idx: row that is left out; -1 or None: none is.
    """
    begins = op.Slice(offsets, [0], [-1], [0]) if include_last_offset else offsets
    bag = _bags(begins, op.Shape(indices))
    place = op.Unsqueeze(bag, [1])
    rows = op.Gather(weight, indices)
    if per_sample_weights is not None:
        rows = op.Mul(rows, op.Unsqueeze(per_sample_weights, [1]))
    counted = op.Expand(op.CastLike(1.0, weight), op.Shape(indices))
    if padding_idx is not None and padding_idx >= 0:
        counted = op.CastLike(op.Not(op.Equal(indices, padding_idx)), weight)
        rows = op.Where(op.Unsqueeze(op.Cast(counted, to=9), [1]), rows, op.CastLike(_neutral(mode), weight))
    shape = op.Concat(op.Shape(begins), op.Shape(weight, start=1, end=2), axis=0)
    start = op.Expand(op.CastLike(_neutral(mode), weight), shape)
    found = op.ScatterND(start, place, rows, reduction="max" if mode == _MAX else "add")
    zeros = op.Expand(op.CastLike(0.0, weight), op.Shape(begins))
    count = op.ScatterND(zeros, place, counted, reduction="add")
    if mode == _MEAN:
        found = op.Div(found, op.Unsqueeze(op.Max(count, op.CastLike(1.0, weight)), [1]))
    if mode == _MAX:
        empty = op.Unsqueeze(op.Equal(count, op.CastLike(0.0, weight)), [1])
        found = op.Where(empty, op.CastLike(0.0, weight), found)
    return found, op.Identity(bag), op.Identity(count), op.Identity(count)


def _neutral(mode: int) -> float:
    """What changes no sum, or no maximum."""
    return float("-inf") if mode == _MAX else 0.0


def _bags(begins: Any, count: Any) -> Any:
    """Return the bag of each index, int64 [count]: how many bags have begun, without the first.

    A bag that begins behind the last index is empty, and has room in the counts.
    """
    none = op.Expand(op.Constant(value_ints=[0]), op.Add(count, op.Constant(value_ints=[1])))
    ones = op.Expand(op.Constant(value_ints=[1]), op.Shape(begins))
    begun = op.CumSum(op.ScatterElements(none, begins, ones, axis=0, reduction="add"), op.Constant(value_int=0))
    return op.Sub(op.Slice(begun, [0], count, [0]), op.Constant(value_ints=[1]))
