"""FuseLayerNormalization."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, RewriteRule, pattern

from qcompile.contract import Pass, Result
from qcompile.rewriting import (
    absorb_weight,
    apply_rules,
    attributes,
    channels,
    merge_results,
    new_constant,
    normalizes_last_axis,
    over_last_axis,
    per_channel,
    scalar,
)


@dataclasses.dataclass(frozen=True)
class FuseLayerNormalization(Pass):
    """(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias -> LayerNormalization(x, weight, bias).

    Ba et al., "Layer Normalization", equation 3, over the last axis. Weight and bias are absorbed where they are
    constants with one value per channel; without a weight it is ones. Does not fire for other axes, nor where the
    number of channels is not known; a weight or bias that is computed keeps its Mul or Add. Needs opset 17 with the
    axes as inputs (18), and operands in the order of computation (`order_operands`).
    """

    looks_for: ClassVar[str] = "(x - mean) / sqrt(mean((x - mean)**2) + epsilon) over the last axis"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place: first the normalization alone, then its weight, then its bias."""
        if model.opset_imports.get("", 0) < 18:
            return Result(model, modified=False)
        normalization = [RewriteRule(pattern, _fused, _is_norm, name="LayerNormalization") for pattern in _PATTERNS]
        absorb_bias = RewriteRule(_with_bias, _biased, _is_bias, name="LayerNormalization")
        rules = (normalization, [absorb_weight("LayerNormalization")], [absorb_bias])
        return merge_results(model, [apply_rules(model, group) for group in rules])


def _moments(op: Any, x: Any, mean_axes: Any, variance_axes: Any, epsilon: Any) -> tuple[Any, Any]:
    """X - mean(x), and the standard deviation."""
    deviation = op.Sub(x, op.ReduceMean(x, mean_axes, _allow_other_attributes=True, _outputs=["mean"]))
    square = pattern.OrValue([op.Mul(deviation, deviation), op.Pow(deviation, 2.0)])
    variance = op.ReduceMean(square, variance_axes, _allow_other_attributes=True, _outputs=["variance"])
    return deviation, op.Sqrt(op.Add(variance, epsilon))


def _divided(op: Any, x: Any, mean_axes: Any, variance_axes: Any, epsilon: Any) -> Any:
    deviation, standard_deviation = _moments(op, x, mean_axes, variance_axes, epsilon)
    return op.Div(deviation, standard_deviation)


def _multiplied(op: Any, x: Any, mean_axes: Any, variance_axes: Any, epsilon: Any) -> Any:
    deviation, standard_deviation = _moments(op, x, mean_axes, variance_axes, epsilon)
    return op.Mul(deviation, op.Reciprocal(standard_deviation))


_PATTERNS = (_divided, _multiplied)


def _is_norm(
    _: MatchContext, x: ir.Value, mean_axes: ir.Value, variance_axes: ir.Value, epsilon: ir.Value, **bound: Any
) -> bool:
    keeps_axes = all(attributes(bound[name]).get("keepdims", _ONE).as_int() == 1 for name in ("mean", "variance"))
    is_float = x.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return keeps_axes and is_float and scalar(epsilon) is not None and normalizes_last_axis(x, mean_axes, variance_axes)


_ONE = ir.AttrInt64("keepdims", 1)


def _fused(op: Any, x: ir.Value, epsilon: ir.Value, mean: ir.Value, **_: Any) -> Any:
    assert x.dtype is not None
    ones = new_constant(op, np.ones(channels(x), x.dtype.numpy()), mean, "weight")
    return op.LayerNormalization(x, ones, axis=-1, epsilon=scalar(epsilon), stash_type=x.dtype.value)


def _with_bias(op: Any, x: Any, weight: Any, bias: Any) -> Any:
    return op.Add(op.LayerNormalization(x, weight, _allow_other_attributes=True, _outputs=["normalized"]), bias)


def _is_bias(_: MatchContext, x: ir.Value, bias: ir.Value, normalized: ir.Value, **_bound: Any) -> bool:
    return over_last_axis(normalized) and bias.dtype == x.dtype and per_channel(bias, channels(x)) is not None


def _biased(op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, normalized: ir.Value) -> Any:
    if bias.shape is None or bias.shape.numpy() != (channels(x),):
        flat = per_channel(bias, channels(x))
        assert flat is not None
        bias = new_constant(op, flat, normalized, "bias")
    return op.LayerNormalization(x, weight, bias, **attributes(normalized))
