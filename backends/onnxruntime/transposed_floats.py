"""Float values that something reads besides the Transpose in front of a quantization."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "MaxPool")
"""Operators that ONNX Runtime moves a quantization in front of, when one scale holds for all elements."""


def keep_transposed_floats(model: ir.Model) -> None:
    """Q(Transpose(v))  ->  Q(Transpose(DQ(Q(v)))), the same integers, where v is an output or is read in a subgraph.

    ONNX Runtime 1.31 writes that pair itself, but lets whatever else reads v read what is rounded: it counts the nodes
    beside the Transpose, and neither outputs nor the bodies of If and Loop (TryFixTransposeMissingDQ of its transpose
    optimizer). A pair that is there it keeps to the Transpose, which then moves integers. The same where a Reshape,
    Slice or such is between the Transpose and Q. Does not apply to what it leaves alone: a v that is dequantized, or
    that no node makes beside the Transpose; quantizers that differ; scales per block. Nor to scales that are computed.
    """
    for node in list(graph.all_nodes(model)):
        value = node.inputs[0] if graph.is_standard(node, "Transpose") else None
        if value is None or not _is_made_beside(node, value) or not _is_read_elsewhere(value):
            continue
        quantize, moved = _quantize(node)
        attributes = None if quantize is None else _attributes(node, quantize, moved)
        if quantize is None or attributes is None or node.graph is None:
            continue
        name = graph.unique_name(model.graph, f"{value.name}.to_move")
        pair = dequantize.pair(value, name, quantize.outputs[0].type, quantize.inputs[1:], attributes)
        node.graph.insert_before(node, pair)
        node.replace_input_with(0, pair[1].outputs[0])


def _is_made_beside(node: ir.Node, value: ir.Value) -> bool:
    """True for a float that a node of the same graph computes."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and dequantize.of_node(producer) is None


def _is_read_elsewhere(value: ir.Value) -> bool:
    """True for outputs, of the model or of a body, and for what a node of another graph reads."""
    return value.is_graph_output() or any(reader.graph is not value.graph for reader in graph.readers(value))


def _quantize(node: ir.Node) -> tuple[ir.Node | None, bool]:
    """Return the quantization that alone reads what the node moves, and whether it is moved again on the way.

    Several that are alike count as one, for the runtime makes them one. None: something else reads it.
    """
    moved = False
    while True:
        value = node.outputs[0]
        readers = [] if _is_read_elsewhere(value) else graph.readers(value)
        if len({_scheme(each) for each in readers}) == 1 and None not in map(_scheme, readers):
            return readers[0], moved
        if len(readers) != 1 or not graph.is_standard(readers[0], *_MOVES) or readers[0].inputs[0] is not value:
            return None, moved
        node, moved = readers[0], True


def _scheme(node: ir.Node) -> tuple[object, ...] | None:
    """What tells two quantizations by known scales apart; None for other nodes."""
    if not graph.is_standard(node, "QuantizeLinear"):
        return None
    arrays = [graph.constant_array(value) for value in node.inputs[1:]]
    if any(array is None for array in arrays):
        return None
    constants = [(array.dtype.name, array.tobytes()) for array in arrays if array is not None]
    return (*constants, *sorted(str(attribute) for attribute in node.attributes.values()))


def _attributes(transpose: ir.Node, quantize: ir.Node, moved: bool) -> dict[str, ir.Attr | int] | None:
    """Those of the quantization in front of the Transpose; None where the runtime would write none there."""
    scale, value = graph.constant(quantize.inputs[1]), transpose.inputs[0]
    attributes: dict[str, ir.Attr | int] = {name: each for name, each in quantize.attributes.items() if name != "axis"}
    assert scale is not None
    assert value is not None
    if scale.size == 1:
        return attributes
    rank = 0 if value.shape is None else len(value.shape)
    order = transpose.attributes.get_ints("perm", tuple(reversed(range(rank))))
    if moved or len(scale.shape) != 1 or not order:
        return None
    return attributes | {"axis": order[quantize.attributes.get_int("axis", 1)]}
