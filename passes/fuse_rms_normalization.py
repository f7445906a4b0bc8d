"""FuseRmsNormalization."""

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
    scalar,
)


@dataclasses.dataclass(frozen=True)
class FuseRmsNormalization(Pass):
    """x / sqrt(mean(x**2) + epsilon) * weight -> RMSNormalization(x, weight).

    Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4, over the last axis. The weight is absorbed
    where it is a constant with one value per channel; without a weight it is ones. A half-precision x that is cast to
    float for the norm and back gives an RMSNormalization of x with a float stash. Does not fire for other axes, nor
    where the number of channels is not known. Needs opset 23 and operands in the order of computation
    (`order_operands`).
    """

    looks_for: ClassVar[str] = "x / sqrt(mean(x**2) + epsilon) over the last axis"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place: first the normalization alone, then its casts, then its weight."""
        if model.opset_imports.get("", 0) < 23:
            return Result(model, modified=False)
        normalization = [RewriteRule(pattern, _fused, _is_norm, name="RMSNormalization") for pattern in _PATTERNS]
        casts = RewriteRule(_cast, _uncast, _returns_to_dtype, name="RMSNormalization")
        rules = (normalization, [casts], [absorb_weight("RMSNormalization")])
        return merge_results(model, [apply_rules(model, group) for group in rules])


def _mean_square(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    square = pattern.OrValue([op.Pow(x, 2.0), op.Mul(x, x)])
    return op.Add(op.ReduceMean(square, axes, _allow_other_attributes=True, _outputs=["mean"]), epsilon)


def _times_reciprocal(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    return op.Mul(x, op.Reciprocal(op.Sqrt(_mean_square(op, x, axes, epsilon))))


def _times_quotient(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    return op.Mul(x, op.Div(1.0, op.Sqrt(_mean_square(op, x, axes, epsilon))))


def _times_power(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    return op.Mul(x, op.Pow(_mean_square(op, x, axes, epsilon), -0.5))


def _divided(op: Any, x: Any, axes: Any, epsilon: Any) -> Any:
    return op.Div(x, op.Sqrt(_mean_square(op, x, axes, epsilon)))


_PATTERNS = (_times_reciprocal, _times_quotient, _times_power, _divided)
_ONE = ir.AttrInt64("keepdims", 1)


def _is_norm(_: MatchContext, x: ir.Value, axes: ir.Value, epsilon: ir.Value, mean: ir.Value) -> bool:
    keeps_axes = attributes(mean).get("keepdims", _ONE).as_int() == 1
    is_float = x.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return keeps_axes and is_float and scalar(epsilon) is not None and normalizes_last_axis(x, axes)


def _fused(op: Any, x: ir.Value, epsilon: ir.Value, mean: ir.Value, **_: Any) -> Any:
    assert x.dtype is not None
    ones = new_constant(op, np.ones(channels(x), x.dtype.numpy()), mean, "weight")
    return op.RMSNormalization(x, ones, axis=-1, epsilon=scalar(epsilon), stash_type=x.dtype.value)


def _cast(op: Any, x: Any, ones: Any, to: Any) -> Any:
    wide = op.Cast(x, to=ir.DataType.FLOAT.value, _allow_other_attributes=True)
    return op.Cast(op.RMSNormalization(wide, ones, _allow_other_attributes=True, _outputs=["normalized"]), to=to)


def _returns_to_dtype(_: MatchContext, x: ir.Value, ones: ir.Value, to: ir.Attr, **_bound: Any) -> bool:
    weight = ones.const_value
    return (
        x.dtype is not None
        and to.as_int() == x.dtype.value
        and weight is not None
        and bool((weight.numpy() == 1).all())
    )


def _uncast(op: Any, x: ir.Value, normalized: ir.Value, **_: Any) -> Any:
    assert x.dtype is not None
    ones = new_constant(op, np.ones(channels(x), x.dtype.numpy()), normalized, "weight")
    return op.RMSNormalization(x, ones, **attributes(normalized))
