"""Quantized values that subgraphs read from the graph around them."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity", "Flatten")
"""Operators behind which ONNX Runtime writes a Q/DQ pair of their input's, or that become one of these."""


def requantize_for_subgraphs(model: ir.Model) -> None:
    """DQ -> Transpose -> If that reads it in a branch becomes DQ -> Transpose -> Q -> DQ -> If; nothing is rounded.

    ONNX Runtime 1.31 writes that pair itself, for every reader but this one: for a reader in a subgraph it looks up an
    input that the If does not have, and the process dies (QDQPropagationTransformer). Does not apply where scales
    differ along an axis: there it writes none.
    """
    done: dict[ir.Value, ir.Value] = {}
    for node in list(graph.all_nodes(model)):
        for index, value in enumerate(node.inputs):
            producer = None if value is None else value.producer()
            if value is None or producer is None or producer.graph is node.graph:
                continue
            parts = _moved(producer)
            if parts is not None and parts.per_tensor:
                pair = done[value] if value in done else done.setdefault(value, _pair(model, value, parts))
                node.replace_input_with(index, pair)


def _moved(node: ir.Node | None) -> dequantize.Dequantized | None:
    """Return the DequantizeLinear whose numbers a node only moves; None for itself, and when there is none."""
    moves = 0
    while node is not None and graph.is_standard(node, *_MOVES):
        moves += 1
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return dequantize.of_node(node) if moves else None


def _pair(model: ir.Model, value: ir.Value, parts: dequantize.Dequantized) -> ir.Value:
    producer = value.producer()
    assert producer is not None
    assert producer.graph is not None
    name = graph.unique_name(model.graph, f"{value.name}.moved")
    scales = [parts.scale, *([parts.zero_point] if parts.zero_point is not None else [])]
    pair = dequantize.pair(value, name, parts.quantized.type, scales, _output_dtype(parts))
    producer.graph.insert_after(producer, pair)
    return pair[1].outputs[0]


def _output_dtype(parts: dequantize.Dequantized) -> dict[str, int]:
    """Return the attribute that QuantizeLinear needs where no zero point says the type."""
    producer, dtype = parts.quantized.producer(), parts.quantized.dtype
    if parts.zero_point is not None:
        return {}
    if producer is not None and graph.is_standard(producer, "QuantizeLinear"):
        return {"output_dtype": producer.attributes.get_int("output_dtype", ir.DataType.UINT8)}
    return {} if dtype is None else {"output_dtype": int(dtype)}
