"""Quantized weights that no integer kernel reads."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize
from qcompile.contract import Finding


def restore_float_weights(model: ir.Model) -> tuple[Finding, ...]:
    """DequantizeLinear(constant) -> Conv  ->  the float constant -> Conv, where the Conv runs in float anyway.

    ONNX Runtime has an integer kernel for a Conv whose result is quantized again, and none for ConvTranspose or for a
    MatMul with a float activation. There it would dequantize the weight at every run, and could not choose its own
    layout for it: 563 us instead of 162 (3x3 depthwise, 384 x 28 x 28, one thread). The values are the same; the
    weight takes four times the space. The finding names the layer. Does not apply to weights that are read by
    anything but Conv, ConvTranspose, MatMul and Gemm. What multiplies something computed from constants is computed
    when the model is loaded, so its weight stays in 8 bits, behind operators that are computed then too.
    """
    findings = []
    fixed = graph.computed_constants(model)
    for node in list(model.graph):
        if not graph.is_standard(node, "Conv", "ConvTranspose", "MatMul", "Gemm") or _runs_in_integers(node):
            continue
        weight = node.inputs[1]
        parts = dequantize.of_value(weight)
        if parts is not None and _is_computed_when_loaded(node, parts, fixed):
            node.replace_input_with(1, dequantize.when_loaded(model, node, parts))
            continue
        constant = dequantize.as_float_constant(model, weight) if parts is not None else None
        if constant is None:
            continue
        node.replace_input_with(1, constant)
        if len(node.inputs) > 2:
            node.replace_input_with(2, dequantize.as_float_constant(model, node.inputs[2]) or node.inputs[2])
        findings.append(Finding(graph.layer_name(node), "kept", _reason(node)))
    return tuple(findings)


def _is_computed_when_loaded(node: ir.Node, parts: dequantize.Dequantized, fixed: frozenset[ir.Value]) -> bool:
    """True for MatMul of what is computed from constants and a weight with one scale, or one for each column."""
    tensor = graph.constant(parts.quantized)
    columns = parts.per_tensor or (tensor is not None and parts.axis in (-1, len(tensor.shape) - 1))
    return node.op_type == "MatMul" and columns and fixed.issuperset(node.inputs)


def _reason(node: ir.Node) -> str:
    if node.op_type == "Conv" and dequantize.of_value(node.inputs[0]) is not None:
        return "ONNX Runtime's integer Conv needs a quantized result; this one is read in float"
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no integer ConvTranspose"
    return "only the weight is quantized; ONNX Runtime computes this in float"


def _runs_in_integers(node: ir.Node) -> bool:
    """True for what ONNX Runtime fuses to QLinearConv: Conv of dequantized values with one reader that quantizes."""
    x = dequantize.of_value(node.inputs[0])
    if node.op_type != "Conv" or x is None or not x.per_tensor:
        return False
    return graph.is_standard(graph.sole_reader(node.outputs[0]), "QuantizeLinear")
