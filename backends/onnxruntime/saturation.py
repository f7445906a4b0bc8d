"""Relu and Clip in front of a quantization: superfluous, or done in integers."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import shared_initializer


def drop_saturated_clips(model: ir.Model) -> None:
    """QuantizeLinear(Clip(x, low, high))  ->  QuantizeLinear(x), and the same for Relu, where the integers are equal.

    Quantization is monotone, so that they are equal when the bounds quantize to the smallest and the largest integer.
    Otherwise, behind a Conv, the integers are clipped: Clip(QuantizeLinear(x), q(low), q(high)), again the same ones.
    ONNX Runtime's integer Conv wants the QuantizeLinear right behind it. Does not apply to bounds, scales or zero
    points that are computed, or to a clipped value with another reader.
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
        integers = None if bounds is None else _quantized(quantize, *bounds)
        if integers is None or graph.sole_reader(clip.outputs[0]) is None:
            continue
        limits = np.iinfo(integers.dtype)
        saturates = integers[0] == limits.min and integers[1] == limits.max
        if not saturates and not _alone_behind_convolution(clip):
            continue
        quantize.replace_input_with(0, clip.inputs[0])
        model.graph.remove(clip, safe=True)
        if not saturates:
            _clip_integers(model, quantize, integers)


def _alone_behind_convolution(clip: ir.Node) -> bool:
    value = clip.inputs[0]
    return value is not None and graph.is_standard(value.producer(), "Conv") and graph.sole_reader(value) is clip


def _clip_integers(model: ir.Model, quantize: ir.Node, integers: np.ndarray) -> None:
    value = quantize.outputs[0]
    ends = [
        shared_initializer(model.graph, f"{value.name}.{end}", q)
        for end, q in zip(("low", "high"), integers, strict=True)
    ]
    clip = ir.node("Clip", [value, *ends])
    # What is quantized keeps the name of what was: the verifier compares values by name.
    clip.outputs[0].name, value.name = value.name, f"{value.name}.unclipped"
    clip.outputs[0].type, clip.outputs[0].shape = value.type, value.shape
    value.replace_all_uses_with(clip.outputs[0], replace_graph_outputs=True)
    clip.replace_input_with(0, value)
    model.graph.insert_after(quantize, clip)


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


def _quantized(quantize: ir.Node, low: float, high: float) -> np.ndarray | None:
    """Integers of the two bounds, of the quantized type, by one constant scale."""
    scale = graph.constant_array(quantize.inputs[1])
    zero_point = graph.constant_array(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero_point.dtype)
    # QuantizeLinear divides in float32, rounds half to even, then adds the zero point.
    steps = np.rint(np.array([low, high], np.float32) / scale.reshape(()).astype(np.float32))
    ends = np.clip(steps + float(zero_point.item()), limits.min, limits.max)
    return ends.astype(zero_point.dtype)
