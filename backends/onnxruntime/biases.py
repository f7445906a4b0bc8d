"""Float biases of quantized convolutions, which ONNX Runtime turns into int32 by itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize
from qcompile.initializers import shared_initializer

_LARGEST = 2.0**30
"""Where int32 still has room for the sum of products."""


def fit_biases(model: ir.Model) -> None:
    """Make the scales of a quantized Conv so large that its float bias fits int32 in units of input times weight scale.

    ONNX Runtime 1.31 quantizes such a bias by itself (its WeightBiasQuantization) and lets it clip: of a channel whose
    weights are next to nothing, and whose bias is not, little is left (up to 108 steps in EfficientNet-Lite0 and 20 in
    PP-OCRv4, measured). The integers of such a channel shrink as its scale grows; what that rounds away is below 2^-31
    of the bias for each product of an 8-bit integer.

    Does not apply to scales or biases that are computed, and to ConvTranspose.
    """
    for node in list(model.graph):
        if not graph.is_standard(node, "Conv") or len(node.inputs) < 3:
            continue
        bias = graph.constant_array(node.inputs[2])
        x, weight = (dequantize.of_value(value) for value in node.inputs[:2])
        if bias is None or bias.dtype != np.float32 or x is None or weight is None or not x.per_tensor:
            continue
        fitted = _fitted(bias, x, weight)
        if fitted is not None:
            name = f"{weight.node.outputs[0].name}.fitted"
            parts = zip(("quantized", "scale", "zero_point"), fitted, strict=True)
            inputs = [shared_initializer(model.graph, f"{name}.{part}", array) for part, array in parts]
            node.replace_input_with(1, dequantize.insert(model, node, weight, "fitted", inputs, axis=0))


def _fitted(
    bias: np.ndarray, x: dequantize.Dequantized, weight: dequantize.Dequantized
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return integers, scale [channels] and zero point of a weight that fit the bias; None where they do already."""
    integers, scale, input_scale = map(graph.constant_array, (weight.quantized, weight.scale, x.scale))
    zero_point = graph.constant_array(weight.zero_point)
    if integers is None or scale is None or input_scale is None or (weight.zero_point and zero_point is None):
        return None
    per_channel = scale.size > 1 and weight.axis % integers.ndim == 0
    if scale.size > 1 and not per_channel:
        return None
    before = np.broadcast_to(scale.astype(np.float64).reshape(-1), bias.shape)
    after = np.maximum(before, np.abs(bias.astype(np.float64)) / (float(input_scale.item()) * _LARGEST))
    if np.array_equal(before, after):
        return None
    zero = np.zeros((), integers.dtype) if zero_point is None else zero_point
    zeros = np.broadcast_to(zero.reshape(-1), bias.shape)
    shape = (-1, *(1 for _ in integers.shape[1:]))
    steps = (integers.astype(np.float64) - zeros.reshape(shape)) * (before / after).reshape(shape)
    return (np.rint(steps) + zeros.reshape(shape)).astype(integers.dtype), after.astype(np.float32), zeros.copy()
