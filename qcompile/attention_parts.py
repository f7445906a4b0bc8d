"""Scale and mask of attention that is written in elementary operators: their patterns, and what a match says of them.

The patterns are those of onnxscript's rewriter; `bound` is what one that matched bound by name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from qcompile.graph import constant_array
from qcompile.rewriting import new_constant, scalar


def scaled(op: Any, value: Any, scale: Any, name: str) -> Any:
    """Value * scale, value / scale or value; `name` is bound to which of them it is."""
    alternatives = [op.Mul(value, scale), op.Div(value, scale), value]
    return pattern.OrValue(alternatives, tag_var=name, tag_values=["Mul", "Div", "None"])


def scale(head_size: Any, bound: dict[str, Any]) -> float | None:
    """Product of the scales on query, key and score; None where one of them is computed."""
    product = 1.0
    for name in ("query", "key", "score"):
        scaling = bound[f"{name}_scaling"]
        if scaling == "None":
            continue
        factor = scalar(bound[f"{name}_scale"])
        if factor is None or factor == 0:
            return None
        product *= factor if scaling == "Mul" else 1.0 / factor
    # q and k scaled by the fourth root in float32 multiply to this up to rounding; the exact value is meant.
    usual = 1.0 / math.sqrt(head_size) if isinstance(head_size, int) else product
    return usual if math.isclose(product, usual, rel_tol=1e-6) else product


def masked(op: Any, score: Any, mask: Any, filled: Any) -> Any:
    """Score with a mask added, with positions filled by a constant, or the score; `masking` is bound to which it is."""
    ways = [
        op.Add(score, mask),
        op.Add(mask, score),
        op.Where(mask, score, filled),
        op.Where(mask, filled, score),
        score,
    ]
    return pattern.OrValue(ways, tag_var="masking", tag_values=["add", "add", "keep", "fill", "none"])


def is_mask(bound: dict[str, Any]) -> bool:
    """Whether the mask broadcasts to [batch, heads, queries, keys] as Attention takes it."""
    if bound["masking"] == "none":
        return True
    mask = bound["mask"]
    if mask.shape is None or not 2 <= len(mask.shape) <= 4 or mask.shape[-1] == 1:
        return False
    fill = scalar(bound["filled"])
    return bound["masking"] == "add" or (fill is not None and fill <= -1e4)


def added_mask(op: Any, query: ir.Value, bound: dict[str, Any]) -> ir.Value:
    """The mask as a number that is added to the scores."""
    mask: ir.Value = bound["mask"]
    if bound["masking"] == "add":
        return mask
    assert query.dtype is not None
    fill = constant_array(bound["filled"])
    assert fill is not None
    zero = new_constant(op, np.zeros((), query.dtype.numpy()), mask, "zero")
    low = new_constant(op, fill.reshape(()), mask, "fill")
    added: ir.Value = op.Where(mask, zero, low) if bound["masking"] == "keep" else op.Where(mask, low, zero)
    return added
