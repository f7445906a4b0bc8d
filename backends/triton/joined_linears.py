"""Linears that read the same value, as one: queries, keys and values; gate and up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.codebook_linears import CODEBOOK_LINEAR
from qcompile.backends.triton.grouped_linears import GROUPED
from qcompile.backends.triton.integer_linears import LINEAR
from qcompile.backends.triton.kernels.group_weight import SCALES_IN_BLOCK
from qcompile.backends.triton.outlier_linears import OUTLIERS
from qcompile.initializers import concatenated, new_initializer, remove_unused, shared_initializer


@dataclasses.dataclass(frozen=True)
class _Operands:
    """What a node of a kernel reads; the bias, [outputs], comes last.

    Attributes:
        count: of all operands.
        shared: places of those that are of all outputs.
        axis: of the outputs, in each of the others.
    """

    count: int
    shared: frozenset[int]
    axis: int

    def of(self, node: ir.Node) -> list[ir.Value | None]:
        """Return them, None for what is left out at the end."""
        return [*node.inputs, *[None] * (self.count - len(node.inputs))]


_OPERANDS = {
    GROUPED: _Operands(5, frozenset({0}), -1),
    CODEBOOK_LINEAR: _Operands(8, frozenset({0, 2, 5, 6}), -1),
    LINEAR: _Operands(7, frozenset({0, 1, 2}), 0),
    OUTLIERS: _Operands(8, frozenset({0, 1, 4, 5}), 0),
}


def join_linears(model: ir.Model) -> None:
    """GroupedLinear(x, A, ..), GroupedLinear(x, B, ..)  ->  Split(GroupedLinear(x, [A B], ..)).

    And the same for IntegerLinear, CodebookLinear and OutlierLinear: one kernel in the place of several, and its parts
    are views. The numbers are the same. A linear without a bias gets one of zeros where another has one. Does not apply
    where a weight is read by something else too, where the bits, the sizes of groups, the codebooks or the outliers are
    not the same, where some have zero points and others none, and to scales in 8 bits whose offsets differ, or whose
    blocks, in front of the last linear, are not full.
    """
    groups: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in model.graph:
        if node.domain == products.DOMAIN and node.op_type in _OPERANDS and _can_join(node):
            groups.setdefault(_kind(node), []).append(node)
    for members in groups.values():
        *front, _ = members
        if front and all(map(_fills_blocks, front)):
            _join(model.graph, members)


def _can_join(node: ir.Node) -> bool:
    *own, _ = _own(node)
    return all(len(value.uses()) == 1 for value in own if value is not None)


def _own(node: ir.Node) -> list[ir.Value | None]:
    """What a linear does not share with others, the bias last."""
    operands = _OPERANDS[node.op_type]
    return [value for place, value in enumerate(operands.of(node)) if place not in operands.shared]


def _kind(node: ir.Node) -> tuple[object, ...]:
    """What linears that are joined have in common."""
    operands = _OPERANDS[node.op_type]
    shared = tuple(_content(operands.of(node)[place]) for place in sorted(operands.shared))
    attributes = tuple(sorted((name, node.attributes.get_int(name)) for name in node.attributes))
    *own, _ = _own(node)
    return node.op_type, attributes, shared, tuple(value is None for value in own)


def _content(value: ir.Value | None) -> object:
    """What is the same for constants with the same numbers, all of which are small: codebooks, places of outliers."""
    array = graph.constant_array(value)
    return value if array is None else (array.dtype, array.shape, array.tobytes())


def _fills_blocks(node: ir.Node) -> bool:
    """Whether the scales of the next linear begin a block of their own, where they are in 8 bits."""
    indices = _OPERANDS[node.op_type].of(node)[4] if node.op_type == CODEBOOK_LINEAR else None
    array = graph.constant(indices)
    return array is None or int(np.prod(array.shape.numpy())) % SCALES_IN_BLOCK == 0


def _join(main: ir.Graph, members: Sequence[ir.Node]) -> None:
    first, operands = members[0], _OPERANDS[members[0].op_type]
    outputs = [_outputs(node) for node in members]
    given = operands.of(first)
    *own, biases = zip(*map(_own, members), strict=True)
    joined = iter([_joined(main, parts, operands.axis) for parts in own])
    bias = _joined(main, _biases(main, biases, outputs), 0)
    inputs = [given[place] if place in operands.shared else next(joined) for place in range(operands.count - 1)]
    node = products.call(first.op_type, [*inputs, bias], first.attributes)
    like, product = first.outputs[0], node.outputs[0]
    product.type = like.type
    product.shape = None if like.shape is None else ir.Shape([*like.shape[:-1], sum(outputs)])
    sizes = shared_initializer(main, f"widths.{'_'.join(map(str, outputs))}", np.array(outputs, np.int64))
    split = ir.node("Split", [product, sizes], {"axis": -1}, num_outputs=len(members))
    results = [each.outputs[0] for each in members]
    ir.convenience.replace_nodes_and_values(main, first, members, [node, split], results, split.outputs)
    remove_unused(value for parts in (*own, biases) for value in parts if value is not None)


def _outputs(node: ir.Node) -> int:
    """How many outputs a linear has."""
    weight = _own(node)[0]
    assert weight is not None
    assert weight.shape is not None
    return int(weight.shape.numpy()[_OPERANDS[node.op_type].axis])


def _joined(main: ir.Graph, parts: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """Constants of all linears side by side; None where there are none."""
    present = [part for part in parts if part is not None]
    return concatenated(main, present, axis) if present else None


def _biases(main: ir.Graph, biases: Sequence[ir.Value | None], outputs: Sequence[int]) -> Sequence[ir.Value | None]:
    """The biases, with zeros for those that are left out, where one is there."""
    if all(bias is None for bias in biases):
        return biases
    pairs = zip(biases, outputs, strict=True)
    return [bias or new_initializer(main, "zeros", np.zeros(width, np.float32)) for bias, width in pairs]
