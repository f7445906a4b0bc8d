"""Convolutions that stay float between quantized ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize
from qcompile.initializers import shared_initializer


def protect_float_convolutions(model: ir.Model) -> None:
    """Give what a float Conv or ConvTranspose reads out of integers a scale per channel, all alike.

    ONNX Runtime quantizes the constant float weight of such a node by itself, per tensor to int8, where its input
    comes from DequantizeLinear with one scale and its output goes to QuantizeLinear (its WeightBiasQuantization). Of a
    depthwise convolution, whose channels differ, little is left: EfficientNet-Lite0 with its first one ignored had
    7.8 dB where it has 25 when all are quantized per channel. It does not look at a DequantizeLinear per channel, which
    computes the same. Float linears are left alone by it, here as in its Gemm.
    """
    for node in list(model.graph):
        channels = _channels(node)
        parts = dequantize.of_value(node.inputs[0]) if channels else None
        if parts is not None and parts.per_tensor and graph.constant(parts.scale) is not None:
            node.replace_input_with(0, _per_channel(model, node, parts, channels))


def _channels(node: ir.Node) -> int:
    """How many channels the node reads where its weight is a float constant, else 0."""
    weight = graph.constant(node.inputs[1]) if graph.is_standard(node, "Conv", "ConvTranspose") else None
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return 0
    if node.op_type == "ConvTranspose":
        return int(weight.shape.numpy()[0])
    return int(weight.shape.numpy()[1]) * node.attributes.get_int("group", 1)


def _per_channel(model: ir.Model, node: ir.Node, parts: dequantize.Dequantized, channels: int) -> ir.Value:
    """A DequantizeLinear of the same integers in front of the node, with the scale and zero point repeated."""
    scale = graph.constant_array(parts.scale)
    assert scale is not None
    zero_point = graph.constant_array(parts.zero_point) if parts.zero_point is not None else None
    name = f"{parts.node.outputs[0].name}.per_channel"
    inputs = [parts.quantized, shared_initializer(model.graph, f"{name}.scale", np.full(channels, scale, scale.dtype))]
    if zero_point is not None:
        vector = np.full(channels, zero_point, zero_point.dtype)
        inputs.append(shared_initializer(model.graph, f"{name}.zero_point", vector))
    return dequantize.insert(model, node, parts, "per_channel", inputs, axis=1)
