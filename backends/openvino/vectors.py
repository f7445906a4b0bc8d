"""Linears of a single vector."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.quantized import quantized_weight
from qcompile.contract import Finding


def keep_vectors_in_float(model: ir.Model) -> tuple[Finding, ...]:
    """MatMul(static Q/DQ(x), W)  ->  MatMul(x, W) where x is a vector [K] and W an 8-bit weight [K, N].

    OpenVINO's integer linear gives [1, N] for a vector, and still does between a Reshape to [1, K] and one back to
    [N] where K is dynamic (measured, 2026.4). Does not fire where the rank is not known.
    """
    findings = []
    for node in model.graph:
        source = None if quantized_weight(node) is None else _vector(node.inputs[0])
        if source is None:
            continue
        node.replace_input_with(0, source)
        reason = "activations stay float in OpenVINO: its integer linear changes the shape of a vector"
        findings.append(Finding(graph.layer_name(node), "kept", reason))
    return tuple(findings)


def _vector(value: ir.Value | None) -> ir.Value | None:
    """Give the float vector behind a static Q/DQ pair, or None."""
    node = None if value is None else value.producer()
    if node is None or not graph.is_standard(node, "DequantizeLinear") or node.inputs[0] is None:
        return None
    quantize = node.inputs[0].producer()
    if quantize is None or not graph.is_standard(quantize, "QuantizeLinear"):
        return None
    source = quantize.inputs[0]
    return source if source is not None and source.shape is not None and len(source.shape) == 1 else None
