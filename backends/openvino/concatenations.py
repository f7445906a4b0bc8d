"""Quantizers behind Concat."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.unsigned_activations import quantize_activations_to_uint8


def quantize_concatenations_to_uint8(model: ir.Model) -> None:
    """Concat(a, b) -> Q -> DQ in int8  ->  the same in uint8, with zero point + 128.

    OpenVINO 2026.4 moves the quantizer in front of the Concat, makes it uint8 there, and forgets the shift by 128 in a
    convolution that reads the result. Reached through whatever has one input that is not a constant, of which it passes
    Relu. Leaves alone what joins nothing: a zero point of 128 makes it compute a ConvTranspose in float.
    """
    quantize_activations_to_uint8(model, _reads_concatenation)


def _reads_concatenation(quantize: ir.Node) -> bool:
    node: ir.Node | None = quantize
    while node is not None and not graph.is_standard(node, "Concat", "DequantizeLinear"):
        inputs = [value for value in node.inputs if value is not None and graph.constant(value) is None]
        node = inputs[0].producer() if len(inputs) == 1 else None
    return node is not None and node.op_type == "Concat"
