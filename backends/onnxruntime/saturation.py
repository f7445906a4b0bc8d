"""Relu and Clip that a quantization behind them makes superfluous."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qcompile import graph


def drop_saturated_clips(model: ir.Model) -> None:
    """QuantizeLinear(Clip(x, low, high))  ->  QuantizeLinear(x), and the same for Relu, where the integers are equal.

    Quantization is monotone, so that they are equal when the bounds quantize to the smallest and the largest integer.
    ONNX Runtime's integer Conv wants the QuantizeLinear right behind it. Does not apply to bounds, scales or zero
    points that are computed, to a bound inside of the quantized range, or to a clipped value with another reader.
    """
    for quantize in list(model.graph):
        clip = (
            quantize.inputs[0].producer()
            if graph.is_standard(quantize, "QuantizeLinear") and quantize.inputs[0]
            else None
        )
        if clip is None or not graph.is_standard(clip, "Relu", "Clip"):
            continue
        bounds = _bounds(clip)
        if bounds is None or graph.sole_reader(clip.outputs[0]) is None or not _saturates_at(quantize, *bounds):
            continue
        quantize.replace_input_with(0, clip.inputs[0])
        model.graph.remove(clip, safe=True)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Lower and upper bound of a Relu, or of a Clip with constant bounds."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:]):
        bound = graph.constant_array(value)
        if value is not None and bound is None:
            return None
        bounds[index] = bounds[index] if bound is None else float(bound.item())
    return bounds[0], bounds[1]


def _saturates_at(quantize: ir.Node, low: float, high: float) -> bool:
    """True when the bounds quantize to the ends of the integer type, by one constant scale."""
    scale = graph.constant_array(quantize.inputs[1])
    zero_point = graph.constant_array(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.kind not in "iu":
        return False
    limits = np.iinfo(zero_point.dtype)
    # QuantizeLinear divides in float32, rounds half to even, then adds the zero point.
    steps = np.rint(np.array([low, high], np.float32) / scale.reshape(()).astype(np.float32))
    ends = steps + float(zero_point.item())
    return bool(ends[0] <= limits.min and ends[1] >= limits.max)
