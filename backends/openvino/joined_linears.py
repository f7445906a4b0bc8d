"""Linears with weights in blocks that read the same value, as one: queries, keys and values; gate and up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.block_weights import BlockWeight
from qcompile.initializers import register_initializer, remove_unused, shared_initializer

_WIDEST = 4096
"""Output features of the joined linear at most: above, each is large enough by itself, and the Split only copies."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Member:
    """One of the linears.

    Attributes:
        product: the MatMul.
        weight: its weight.
        bias: the constant that its one reader adds; None without one.
    """

    product: ir.Node
    weight: BlockWeight
    bias: ir.Value | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The MatMul, and the Add behind it."""
        if self.bias is None:
            return (self.product,)
        add = graph.sole_reader(self.product.outputs[0])
        assert add is not None
        return (self.product, add)

    @property
    def kind(self) -> tuple[object, ...]:
        """What members that are joined have in common."""
        weight, zero = self.weight, self.weight.zero_point
        attributes = tuple(sorted((name, weight.node.attributes.get_int(name)) for name in weight.node.attributes))
        x, dtype = self.product.inputs[0], weight.integers.dtype
        return x, self.product.graph, dtype, weight.bits, weight.block_size, attributes, zero is None, self.bias is None


def join_linears(model: ir.Model) -> None:
    """MatMul(x, A) + a, MatMul(x, B) + b  ->  Split(MatMul(x, [A B]) + [a b]), of weights in blocks.

    A linear takes OpenVINO 9 us whatever its size (measured with 2 threads, 2026.4): joined, a decoder's seven to a
    layer become four. The numbers are the same. Does not fire on linears that are outputs, on weights that are read
    twice, of unlike groups or types, where some have a bias and others none, and above 4,096 outputs together.
    """
    groups: dict[tuple[object, ...], list[_Member]] = {}
    for node in model.graph:
        member = _member(node)
        if member is not None:
            groups.setdefault(member.kind, []).append(member)
    for members in groups.values():
        if len(members) > 1 and sum(member.weight.outputs for member in members) <= _WIDEST:
            _join(model.graph, members)


def _member(node: ir.Node) -> _Member | None:
    if not graph.is_standard(node, "MatMul"):
        return None
    weight = block_weights.of_value(node.inputs[1])
    if weight is None or len(weight.node.outputs[0].uses()) > 1 or node.outputs[0].is_graph_output():
        return None
    add = graph.sole_reader(node.outputs[0])
    if add is not None and graph.is_standard(add, "Add") and not add.outputs[0].is_graph_output():
        bias = next((value for value in add.inputs if graph.constant(value) is not None), None)
        if bias is not None and bias.shape is not None and bias.shape.numpy() == (weight.outputs,):
            return _Member(node, weight, bias)
    return _Member(node, weight, None)


def _join(main: ir.Graph, members: Sequence[_Member]) -> None:
    first, last = members[0], members[0].nodes[-1].outputs[0]
    name = "+".join(graph.layer_name(member.product) for member in members)
    sources = [member.weight.node for member in members]
    inputs = [_side_by_side(main, [node.inputs[place] for node in sources]) for place in range(len(sources[0].inputs))]
    weight = ir.node("DequantizeLinear", inputs, dict(sources[0].attributes), name=f"{name}.weight")
    product = ir.node("MatMul", [first.product.inputs[0], weight.outputs[0]], name=name)
    nodes = [weight, product]
    if first.bias is not None:
        nodes.append(
            ir.node(
                "Add", [product.outputs[0], _side_by_side(main, [member.bias for member in members])], name=f"{name}+"
            )
        )
    widths = [member.weight.outputs for member in members]
    sizes = shared_initializer(main, f"widths.{'_'.join(map(str, widths))}", np.array(widths, np.int64))
    split = ir.node(
        "Split", [nodes[-1].outputs[0], sizes], {"axis": -1}, num_outputs=len(members), name=f"{name}.split"
    )
    for node in nodes[1:]:
        node.outputs[0].type = last.type
        node.outputs[0].shape = None if last.shape is None else ir.Shape([*last.shape[:-1], sum(widths)])
    old = [node for member in members for node in member.nodes]
    results = [member.nodes[-1].outputs[0] for member in members]
    unused = [value for node in sources for value in node.inputs] + [member.bias for member in members]
    ir.convenience.replace_nodes_and_values(
        main, first.product, [*old, *sources], [*nodes, split], results, list(split.outputs)
    )
    remove_unused(value for value in unused if value is not None)


def _side_by_side(main: ir.Graph, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """Return a lazy initializer of constants joined along the outputs, their last axis."""
    tensors = [tensor for part in parts if (tensor := graph.constant(part)) is not None]
    if not tensors:
        return None
    shape = (*tensors[0].shape.numpy()[:-1], sum(int(tensor.shape.numpy()[-1]) for tensor in tensors))
    name = graph.unique_name(main, "+".join(str(tensor.name) for tensor in tensors))
    joined = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1), tensors[0].dtype),
        tensors[0].dtype,
        ir.Shape(shape),
        name=name,
    )
    return register_initializer(main, joined)
