"""The words of a linear whose outlier channels are multiplied in float: how that is written, and how it is recognised.

    y = MatMul(x * mask, W with rows O zero) + bias + MatMul(Gather(x, O, axis=-1), W[O, :])

mask is 0 for the channels O and 1 for all others. Standard operators, of any opset: the first product keeps its shape,
so that it may be quantized as any other, by a scale that the outliers have no part in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.channel_scales import multiply_constant
from qcompile.graph import Linear, Names, constant, constant_array, is_standard, readers
from qcompile.initializers import lazy_tensor, register_initializer


def split(found: Sequence[Linear], channels: np.ndarray) -> None:
    """Write linears that read one value so that they multiply some of its channels apart from the others.

    What reads a linear gets the sum of the products. It has the names that it had; the product of the other channels
    keeps its own, as the node does.

    Args:
        found: linears of the main graph with one x, in graph order.
        channels: int64 [outliers], ascending.
    """
    x, graph = found[0].x, found[0].matmul.graph
    assert isinstance(graph, ir.Graph)
    width = found[0].weight.shape.numpy()[0] if found[0].weight.shape is not None else 0
    mask = np.ones(width, np.float32)
    mask[channels] = 0
    names = Names(graph)
    constants = [
        register_initializer(graph, ir.tensor(array, name=names.new(f"{x.name}.{name}")))
        for name, array in (("inlier_mask", mask), ("outlier_channels", channels.astype(np.int64)))
    ]
    inliers = _node(names, "Mul", [x, constants[0]], f"{x.name}.inliers", x.shape)
    leading = None if x.shape is None else ir.Shape([*x.shape[:-1], len(channels)])
    outliers = _node(names, "Gather", [x, constants[1]], f"{x.name}.outliers", leading, axis=-1)
    graph.insert_before(found[0].matmul, [inliers, outliers])
    for linear in found:
        _split(linear, graph, names, inliers.outputs[0], outliers.outputs[0], mask)


def _split(
    linear: Linear, graph: ir.Graph, names: Names, inliers: ir.Value, outliers: ir.Value, mask: np.ndarray
) -> None:
    tensor, matmul, output = constant(linear.weight), linear.matmul, linear.output
    assert tensor is not None
    channels = np.flatnonzero(mask == 0)
    name = names.new(f"{linear.weight.name}.outliers")
    shape = (len(channels), int(tensor.shape.numpy()[1]))
    rows = register_initializer(graph, lazy_tensor(tensor, name, shape, lambda array: array[channels]))
    matmul.replace_input_with(0, inliers)
    multiply_constant(matmul, 1, mask[:, None])
    product = _node(names, "MatMul", [outliers, rows], f"{linear.name}.outliers", output.shape)
    total = _node(names, "Add", [output, product.outputs[0]], f"{linear.name}.sum", output.shape)
    graph.insert_after(linear.add or matmul, [product, total])
    reading = [use for use in output.uses() if use.node is not total]
    for use in reading:
        use.node.replace_input_with(use.idx, total.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = total.outputs[0]
            output.name, total.outputs[0].name = total.outputs[0].name, output.name


def is_inliers(value: ir.Value) -> bool:
    """True for a value from which outlier channels were taken, which its mask sets to zero."""
    node = value.producer()
    if not is_standard(node, "Mul") or node is None:
        return False
    return any(_zeros(node, reader) for x in node.inputs if x is not None for reader in readers(x))


def is_outliers(value: ir.Value | None) -> bool:
    """True for the outlier channels of a value, whose other channels are multiplied elsewhere."""
    node = None if value is None else value.producer()
    if not is_standard(node, "Gather") or node is None or node.inputs[0] is None:
        return False
    return any(_zeros(reader, node) for reader in readers(node.inputs[0]))


def _zeros(mul: ir.Node, gather: ir.Node) -> bool:
    """True where a Mul sets those channels of its input to zero, and no others, that a Gather takes from the same."""
    if not (is_standard(mul, "Mul") and is_standard(gather, "Gather")) or gather.inputs[0] not in mul.inputs:
        return False
    x, channels = gather.inputs[0], constant_array(gather.inputs[1])
    mask = constant_array(mul.inputs[1] if mul.inputs[0] is x else mul.inputs[0])
    last = gather.attributes.get_int("axis", 0) == -1
    if not last or mask is None or channels is None or mask.ndim != 1 or channels.ndim != 1:
        return False
    return np.array_equal(np.flatnonzero(mask == 0), channels)


def _node(
    names: Names, op_type: str, inputs: list[ir.Value], name: str, shape: ir.Shape | None, **attributes: int
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=names.new(name))
    value = node.outputs[0]
    value.name, value.shape, value.type = names.new(f"{name}.value"), shape, ir.TensorType(ir.DataType.FLOAT)
    return node
