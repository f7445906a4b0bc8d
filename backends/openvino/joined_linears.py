"""Linears with weights in blocks that read the same value, as one: queries, keys and values; gate and up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.block_weights import BlockWeight
from qcompile.initializers import concatenated, remove_unused, shared_initializer

_WIDEST = 4096
"""Output features of the joined linear at most: above, each is large enough by itself, and the Split only copies."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Member:
    """One of the linears.

    Attributes:
        product: the MatMul.
        weight: its weight.
        minimum: MatMul(sums of blocks of x, a constant), which is added: what stands in each block of the weight
            besides its integers times its scale; None without one.
        bias: the constant that is added to that; None without one.
        nodes: of these, in order: the products and the Adds.
    """

    product: ir.Node
    weight: BlockWeight
    minimum: ir.Node | None
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """What members that are joined have in common."""
        weight, zero = self.weight, self.weight.zero_point
        attributes = tuple(sorted((name, weight.node.attributes.get_int(name)) for name in weight.node.attributes))
        x, dtype = self.product.inputs[0], weight.integers.dtype
        sums = None if self.minimum is None else self.minimum.inputs[0]
        kind = dtype, weight.bits, weight.block_size, attributes, zero is None
        return x, self.product.graph, kind, sums, self.bias is None


def join_linears(model: ir.Model) -> None:
    """MatMul(x, A) + a, MatMul(x, B) + b  ->  Split(MatMul(x, [A B]) + [a b]), of weights in blocks.

    The same for weights with a minimum of each block, MatMul(x, A) + MatMul(sums of blocks of x, minimum of A) + a.
    A linear takes OpenVINO 9 us whatever its size (measured with 2 threads, 2026.4): joined, a decoder's seven to a
    layer become four, and the products with the minimums too. The numbers are the same. Does not fire on linears that
    are outputs, on weights that are read twice, of unlike groups or types, where some have a minimum or a bias and
    others none, and above 4,096 outputs together.
    """
    groups: dict[tuple[object, ...], list[_Member]] = {}
    for node in model.graph:
        member = _member(node)
        if member is not None:
            groups.setdefault(member.kind, []).append(member)
    for members in groups.values():
        if len(members) > 1 and sum(member.weight.outputs for member in members) <= _WIDEST:
            _join(model.graph, members)
    model.graph.sort()  # sums of blocks may stand behind the first linear


def _member(node: ir.Node) -> _Member | None:
    if not graph.is_standard(node, "MatMul"):
        return None
    weight = block_weights.of_value(node.inputs[1])
    if weight is None or len(weight.node.outputs[0].uses()) > 1 or node.outputs[0].is_graph_output():
        return None
    nodes, minimum, bias = [node], None, None
    other = _added(node)
    if other is not None and _is_minimum(other[1].producer(), node, weight.outputs):
        add, minimum = other[0], other[1].producer()
        assert minimum is not None
        nodes += [minimum, add]
        other = _added(add)
    if other is not None and graph.constant(other[1]) is not None and other[1].shape == (weight.outputs,):
        add, bias = other
        nodes.append(add)
    return _Member(node, weight, minimum, bias, tuple(nodes))


def _added(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add that alone reads a node and is no output of the model, and what it adds."""
    add = graph.sole_reader(node.outputs[0])
    if not graph.is_standard(add, "Add") or add is None or add.outputs[0].is_graph_output():
        return None
    other = add.inputs[0 if add.inputs[1] is node.outputs[0] else 1]
    return None if other is None or other is node.outputs[0] else (add, other)


def _is_minimum(node: ir.Node | None, product: ir.Node, outputs: int) -> bool:
    """Whether a node multiplies sums over parts of what a linear reads by a constant float32 [parts, outputs]."""
    if not graph.is_standard(node, "MatMul") or node is None or graph.sole_reader(node.outputs[0]) is None:
        return False
    sums, constant = node.inputs[0], graph.constant(node.inputs[1])
    total = None if sums is None else sums.producer()
    if not graph.is_standard(total, "ReduceSum") or total is None or total.inputs[0] is None or constant is None:
        return False
    parts = total.inputs[0].producer()
    of_x = graph.is_standard(parts, "Reshape") and parts is not None and parts.inputs[0] is product.inputs[0]
    return of_x and len(constant.shape) == 2 and constant.shape[1] == outputs and constant.dtype == ir.DataType.FLOAT


def _join(main: ir.Graph, members: Sequence[_Member]) -> None:
    first, last = members[0], members[0].nodes[-1].outputs[0]
    name = "+".join(graph.layer_name(member.product) for member in members)
    sources = [member.weight.node for member in members]
    inputs = [_side_by_side(main, [node.inputs[place] for node in sources]) for place in range(len(sources[0].inputs))]
    weight = ir.node("DequantizeLinear", inputs, dict(sources[0].attributes), name=f"{name}.weight")
    product = ir.node("MatMul", [first.product.inputs[0], weight.outputs[0]], name=name)
    nodes = [weight, product]
    if first.minimum is not None:
        minimum = _side_by_side(main, [member.minimum.inputs[1] for member in members if member.minimum is not None])
        of_minimum = ir.node("MatMul", [first.minimum.inputs[0], minimum], name=f"{name}.of_minimum")
        total = ir.node("Add", [product.outputs[0], of_minimum.outputs[0]], name=f"{name}.with_minimum")
        nodes += [of_minimum, total]
    if first.bias is not None:
        bias = _side_by_side(main, [member.bias for member in members])
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=f"{name}+"))
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
    unused += [member.minimum.inputs[1] for member in members if member.minimum is not None]
    ir.convenience.replace_nodes_and_values(
        main, first.product, [*old, *sources], [*nodes, split], results, list(split.outputs)
    )
    remove_unused(value for value in unused if value is not None)


def _side_by_side(main: ir.Graph, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """Return constants joined along the outputs, their last axis; None where there are none."""
    given = [part for part in parts if graph.constant(part) is not None and part is not None]
    return concatenated(main, given, -1) if given else None
