"""Linears that were joined because they read the same value: OpenVINO is faster with them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.quantized import quantized_weight
from qcompile.initializers import lazy_tensor, register_initializer


def separate_joined_linears(model: ir.Model) -> None:
    """Split(MatMul(x, [A B]) + [a b])  ->  MatMul(x, A) + a, MatMul(x, B) + b.

    The integer kernel is no faster for the larger product (q, k and v of 384 features together: 176 us, apart: 156),
    while the Split copies and keeps the attention behind it from reading its heads in place: 4% of a sentence
    encoder's time at batch 1, 7% at batch 8 (measured).

    Does not fire when the sizes of the Split are computed, when it splits another axis than the last, or when the
    joined value has another reader.
    """
    for split in list(model.graph):
        sizes = _sizes(split)
        if sizes is None or split.inputs[0] is None:
            continue
        value: ir.Value = split.inputs[0]
        add = value.producer()
        bias = _bias(add)
        if add is not None and bias is not None and add.inputs[0] is not None:
            matmul = add.inputs[0].producer()
        else:
            add, matmul = None, add
        if matmul is None or not _is_linear(matmul) or not _alone([matmul, *([add] if add is not None else [])]):
            continue
        bounds = [0, *itertools.accumulate(sizes)]
        for output, columns in zip(split.outputs, itertools.pairwise(bounds), strict=True):
            part = _part(matmul, bias, slice(*columns), output)
            ir.convenience.replace_all_uses_with(output, part, replace_graph_outputs=True)
        model.graph.remove([node for node in (split, add, matmul) if node is not None], safe=True)


def _sizes(node: ir.Node) -> list[int] | None:
    """Sizes of the pieces when the node splits the last axis at constant places."""
    value = node.inputs[0] if graph.is_standard(node, "Split") else None
    if value is None or value.shape is None or len(node.inputs) < 2:
        return None
    sizes = graph.constant_array(node.inputs[1])
    if sizes is None or node.attributes.get_int("axis", 0) not in (-1, len(value.shape) - 1):
        return None
    return [int(size) for size in sizes]


def _bias(node: ir.Node | None) -> ir.Value | None:
    bias = node.inputs[1] if node is not None and graph.is_standard(node, "Add") else None
    tensor = graph.constant(bias)
    return bias if tensor is not None and len(tensor.shape) == 1 else None


def _is_linear(node: ir.Node) -> bool:
    tensor = graph.constant(node.inputs[1]) if graph.is_standard(node, "MatMul") else None
    return quantized_weight(node) is not None or (tensor is not None and len(tensor.shape) == 2)


def _alone(nodes: Sequence[ir.Node]) -> bool:
    """True when each node's result is read once, and is no output of the model."""
    return all(graph.sole_reader(node.outputs[0]) is not None for node in nodes)


def _part(matmul: ir.Node, bias: ir.Value | None, columns: slice, output: ir.Value) -> ir.Value:
    """Insert the linear of these columns before the joined one, and return its result."""
    parent = matmul.graph
    assert isinstance(parent, ir.Graph)
    weight = matmul.inputs[1]
    assert weight is not None
    name, dequantize = f"{matmul.name}/{output.name}", weight.producer()
    if dequantize is None:
        weight = _columns(weight, columns, name)
    else:
        pieces = [_columns(value, columns, name) for value in dequantize.inputs if value is not None]
        node = ir.node("DequantizeLinear", pieces, dequantize.attributes, name=f"{name}/weight")
        node.outputs[0].name = f"{name}/weight"
        parent.insert_before(matmul, node)
        weight = node.outputs[0]
    nodes = [ir.node("MatMul", [matmul.inputs[0], weight], name=name)]
    nodes[0].metadata_props.update(matmul.metadata_props)
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], _columns(bias, columns, name)], name=f"{name}/bias"))
        nodes[0].outputs[0].name = f"{name}/product"
    result = nodes[-1].outputs[0]
    result.name, output.name = output.name, f"{output.name}/joined"
    result.type, result.shape = output.type, output.shape
    parent.insert_before(matmul, nodes)
    return result


def _columns(value: ir.Value, columns: slice, name: str) -> ir.Value:
    """Lazy initializer of these columns; a scalar is shared by all."""
    tensor = graph.constant(value)
    assert tensor is not None
    if len(tensor.shape) == 0:
        return value
    shape = (*tensor.shape.numpy()[:-1], columns.stop - columns.start)
    piece = lazy_tensor(tensor, f"{name}/{value.name}", shape, lambda array: array[..., columns])
    assert isinstance(value.graph, ir.Graph)
    return register_initializer(value.graph, piece)
