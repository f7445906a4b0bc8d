"""Activations that are quantized at run time: OpenVINO does it inside of its linears with 8-bit weights."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.backends.openvino.decompression import is_weight_only, storage
from qcompile.backends.openvino.quantized import quantized_weight
from qcompile.block_functions import rounded_in_blocks
from qcompile.contract import Finding

# Measured on MiniLM, times as fast as float and error: smoothed weights 64: 2.0, 0.0002; 128: 2.1, 0.0003; not smoothed
# 16: 1.5; 32: 1.7, 0.0006; 64: 1.9, 0.0007; 128: 2.0, 0.0009; 384: 1.9.
GROUP_SIZES = (128, 64, 32, 16)
SMALLEST = GROUP_SIZES[-1]
PER_TOKEN = ("qcompile", "QuantizeDequantizePerToken")


def quantize_at_run_time(model: ir.Model) -> tuple[int, tuple[Finding, ...]]:
    """MatMul(dynamic Q/DQ(x), W)  ->  MatMul(x, W), and the number of channels that share a scale.

    OpenVINO then quantizes x itself, in groups of this many channels of a token: finer than per token, or than the
    blocks that the graph says, so that the error is at most that of the portable graph. The number is 0 when nothing is
    quantized at run time.

    A dynamic Q/DQ stays, and is computed in float operators, where it is read by something else than a linear with
    a weight of 8 bits or in blocks. The activations of a linear stay float when OpenVINO has no kernel: an asymmetric
    weight with one scale for each output, or fewer input channels than a group. What is left of the channels behind the
    last whole group is a smaller one, which is right for every width (measured, 2026.4). Linears that need one go by
    what suits the others.

    There is one number for the model. Where that of the groups of a weight is not a multiple of it, activations stay
    float (measured); so where linears with weights in blocks disagree, those of all of them do.
    """
    findings: list[Finding] = []
    widths: set[int] = set()
    for node in list(model.graph):
        weight = quantized_weight(node)
        source = None if weight is None else _quantized_at_run_time(node.inputs[0])
        if weight is None or source is None:
            continue
        node.replace_input_with(0, source)
        if weight.zero_point.any():
            findings.append(_kept(node, "its weight is asymmetric"))
        elif weight.in_features < SMALLEST:
            findings.append(_kept(node, f"{weight.in_features} input channels are fewer than {SMALLEST}"))
        else:
            widths.add(weight.in_features)
    deciding = {width for width in widths if width % SMALLEST == 0} or widths
    multiples = {width // SMALLEST * SMALLEST for width in deciding}
    rounded, disagreement = _rounded_in_blocks(model)
    for each in rounded:
        each.node.replace_input_with(0, each.source)
        multiples.update(each.multiples)
    size = next((size for size in GROUP_SIZES if all(number % size == 0 for number in multiples)), 0)
    if rounded and (disagreement or not size):
        reason = disagreement or f"it needs groups of {SMALLEST} or more channels that divide those of the weights"
        return 0, (*findings, *(_kept(each.node, reason) for each in rounded))
    return size if widths or rounded else 0, tuple(findings)


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """A linear with a weight in blocks whose activation is rounded in blocks.

    Attributes:
        node: the MatMul.
        source: the float activation.
        multiples: numbers of channels that the size of a group must divide.
    """

    node: ir.Node
    source: ir.Value
    multiples: tuple[int, ...]


def _rounded_in_blocks(model: ir.Model) -> tuple[list[_Rounded], str]:
    """Return the linears that round what they read in blocks, and why OpenVINO cannot do that; empty where it can."""
    rounded, others = [], 0
    for node in model.graph:
        weight = block_weights.of_value(node.inputs[1]) if is_weight_only(node) else None
        if weight is None:
            continue
        found, stored = rounded_in_blocks(node.inputs[0]), storage(weight)
        if found is None:
            others += 1
            continue
        others += stored is None
        width = weight.inputs // SMALLEST * SMALLEST
        if stored is not None and stored.group_size < stored.inputs:
            width = stored.group_size
        rounded.append(_Rounded(node, found[0], tuple(number for number in (found[1], width) if number)))
    disagreement = "it rounds those of all linears or of none, and not all can be, or are to be" if others else ""
    return rounded, disagreement


def _quantized_at_run_time(value: ir.Value | None) -> ir.Value | None:
    """Give the float value behind a dynamic Q/DQ, or None when the value is not the result of one."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if (node.domain, node.op_type) == PER_TOKEN:
        return node.inputs[0]
    if graph.is_standard(node, "DequantizeLinear") and node.inputs[0] is not None:
        quantize = node.inputs[0].producer()
        if graph.is_standard(quantize, "DynamicQuantizeLinear"):
            assert quantize is not None
            return quantize.inputs[0]
    return None


def _kept(node: ir.Node, reason: str) -> Finding:
    return Finding(graph.layer_name(node), "kept", f"activations stay float in OpenVINO: {reason}")
