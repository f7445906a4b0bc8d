"""One rule per operator: how the scales of its inputs and of its output go together.

A rule looks at the layouts of a node's inputs and outputs in both directions and asks for what follows from them. It
raises Blocked where the operator does not allow a scale. An operator without a rule blocks every scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile import channel_rules_absorbers as absorbers
from qcompile import channel_rules_shapes as shapes
from qcompile import graph
from qcompile.channel_layouts import Blocked, Shape, collapse, concrete, full_axis, with_rank
from qcompile.channel_walk import Walk, describe, follow, operand, same, shape_of, together, uniform, unscaled

Rule = Callable[[ir.Node, Walk], None]


def apply(node: ir.Node, walk: Walk) -> None:
    """Look at one node; raises Blocked with the reason when a scale that reached it has no place in it."""
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        raise Blocked(f"{describe(node)} does not pass on a scale of its channels")
    rule(node, walk)


def _homogeneous(node: ir.Node, walk: Walk) -> None:
    unscaled(node, walk, range(1, len(node.inputs)))
    follow(node, walk, same, same)


def _cast(node: ir.Node, walk: Walk) -> None:
    """Cast to a type that holds every number of the value: what is rounded differs with the scale."""
    target, source = ir.DataType(node.attributes["to"].as_int()), operand(node, 0).dtype
    if not target.is_floating_point():
        raise Blocked(f"{describe(node)} makes integers of the scaled value")
    if source is None or not np.can_cast(source.numpy(), target.numpy()):
        raise Blocked(f"{describe(node)} rounds the scaled value to {target}")
    _homogeneous(node, walk)


def _pow(node: ir.Node, walk: Walk) -> None:
    exponent = graph.constant_array(node.inputs[1])
    if exponent is None or exponent.size != 1 or exponent.item() <= 0:
        raise Blocked(f"the exponent of {describe(node)} is not one positive constant")
    follow(node, walk, same, same, degree=float(exponent.item()))


def _add(node: ir.Node, walk: Walk) -> None:
    """Add, Sub, Sum, Max, Min: every operand takes the scale of the result."""
    together(node, walk, range(len(node.inputs)))


def _where(node: ir.Node, walk: Walk) -> None:
    unscaled(node, walk, [0])
    together(node, walk, [1, 2])


def _multiply(node: ir.Node, walk: Walk) -> None:
    """Mul and Div: a constant vector takes the scale; of two computed factors one carries it."""
    constants = [graph.constant(value) is not None for value in node.inputs]
    if node.inputs[0] is node.inputs[1] and node.op_type == "Mul":
        follow(node, walk, same, same, degree=2.0)
    elif any(constants):
        _multiply_constant(node, walk, constants.index(True))
    else:
        _multiply_computed(node, walk)


def _multiply_constant(node: ir.Node, walk: Walk, index: int) -> None:
    other = 1 - index
    above, below = walk.layout(node.outputs[0]), walk.layout(node.inputs[other])
    if node.op_type == "Div" and other == 1 and below is not None:
        raise Blocked(f"{describe(node)} divides by the scaled value")
    tensor = graph.constant(node.inputs[index])
    assert tensor is not None
    if tensor.size == 1 and walk.choose(node, 2) == 0:
        follow(node, walk, same, same, index=other)
        return
    shape = shape_of(node.outputs[0])
    sign = -1.0 if node.op_type == "Div" and index == 1 else 1.0
    if above is not None:
        walk.rescale(node, index, concrete(above.ids, shape), sign * above.power, "output")
    if below is not None:
        walk.rescale(node, index, concrete(with_rank(below.ids, len(shape)), shape), -sign * below.power, "input")


def _multiply_computed(node: ir.Node, walk: Walk) -> None:
    scaled = [index for index in (0, 1) if walk.layout(node.inputs[index]) is not None]
    if len(scaled) == 2 or (scaled == [1] and node.op_type == "Div"):
        raise Blocked(f"{describe(node)} reads scaled values as both operands or as divisor")
    above = walk.layout(node.outputs[0])
    if not scaled and above is not None:
        carriers = [
            index
            for index in ((0, 1) if node.op_type == "Mul" else (0,))
            if _keeps(above.ids, shape_of(operand(node, index)))
        ]
        if not carriers:
            raise Blocked(f"no operand of {describe(node)} has the scaled channels apart")
        scaled = [carriers[walk.choose(node, len(carriers)) if len(carriers) > 1 else 0]]
    rank = len(shape_of(node.outputs[0])) if scaled else 0
    for index in scaled:
        follow(node, walk, same, lambda ids: with_rank(ids, rank), index=index)


def _keeps(ids: np.ndarray, shape: Shape) -> bool:
    """True when no axis along which the ids vary is broadcast from this shape."""
    padded = (*(1,) * (ids.ndim - len(shape)), *shape)
    return all(length == 1 or dim != 1 for length, dim in zip(ids.shape, padded, strict=True))


def _matmul(node: ir.Node, walk: Walk) -> None:
    left, right = operand(node, 0), operand(node, 1)
    if min(len(shape_of(left)), len(shape_of(right))) < 2:
        raise Blocked(f"{describe(node)} has an operand without rows")
    above = walk.layout(node.outputs[0])
    if graph.constant(right) is not None:
        below = walk.layout(left)
        if above is not None:
            uniform(node, above.ids, [-2])
            walk.rescale(node, 1, concrete(above.ids, shape_of(right)), above.power, "output")
        if below is not None:
            uniform(node, below.ids, [-2])
            rows = concrete(np.swapaxes(below.ids, -1, -2), shape_of(right))
            walk.rescale(node, 1, rows, -below.power, "input")
        return
    _matmul_computed(node, walk)


def _matmul_computed(node: ir.Node, walk: Walk) -> None:
    scaled = [index for index in (0, 1) if walk.layout(node.inputs[index]) is not None]
    above = walk.layout(node.outputs[0])
    if len(scaled) == 2:
        raise Blocked(f"{describe(node)} multiplies two scaled values")
    if not scaled and above is not None:
        scaled = [0 if above.ids.shape[-1] == 1 and above.ids.shape[-2] > 1 else 1]
    rank = len(shape_of(node.outputs[0])) if scaled else 0
    for index in scaled:
        mixed = -1 if index == 0 else -2
        for value in (node.inputs[index], node.outputs[0]):
            layout = walk.layout(value)
            if layout is not None:
                uniform(node, layout.ids, [mixed])
        follow(node, walk, same, lambda ids: with_rank(ids, rank), index=index)


def _attention(node: ir.Node, walk: Walk) -> None:
    """The channels of V are the channels of the output; query heads that share a key-value head share its scale."""
    unscaled(node, walk, [index for index in range(len(node.inputs)) if index != 2])
    cached = len(node.inputs) > 5 and node.inputs[5] is not None
    if cached or any(output.uses() or output.is_graph_output() for output in node.outputs[2:3]):
        raise Blocked(f"{describe(node)} keeps its values in a cache outside the graph")
    value, output = operand(node, 2), node.outputs[0]
    heads, channels = _heads(node, value, "kv_num_heads"), _heads(node, output, "q_num_heads")
    if channels[0] % heads[0]:
        raise Blocked(f"{describe(node)} has {channels[0]} query heads for {heads[0]}")
    repeats = channels[0] // heads[0]

    def up(ids: np.ndarray) -> np.ndarray:
        ids = _split_heads(node, ids, channels).reshape(heads[0], repeats, -1)
        return _join_heads(collapse(ids, 1)[:, 0], len(shape_of(value)))

    def down(ids: np.ndarray) -> np.ndarray:
        return _join_heads(np.repeat(_split_heads(node, ids, heads), repeats, axis=0), len(shape_of(output)))

    follow(node, walk, up, down, index=2)


def _heads(node: ir.Node, value: ir.Value, attribute: str) -> tuple[int, int]:
    """Number of heads and channels of a head of a 4-D [batch, heads, sequence, channels] or 3-D value."""
    shape = shape_of(value)
    heads, channels = shape[1], shape[-1]
    if len(shape) == 3:
        heads = node.attributes[attribute].as_int()
        channels = channels // heads if isinstance(channels, int) else channels
    if not isinstance(heads, int) or not isinstance(channels, int):
        raise Blocked(f"{describe(node)} has heads of unknown number or size")
    return heads, channels


def _split_heads(node: ir.Node, ids: np.ndarray, heads: tuple[int, int]) -> np.ndarray:
    uniform(node, ids, [0, -2])
    if ids.ndim == 3:
        return full_axis(ids, 2, heads[0] * heads[1]).reshape(heads)
    return full_axis(full_axis(ids, 1, heads[0]), 3, heads[1]).reshape(heads)


def _join_heads(ids: np.ndarray, rank: int) -> np.ndarray:
    return ids.reshape(1, 1, -1) if rank == 3 else ids[None, :, None, :]


_RULES: dict[str, Rule] = {
    "Abs": _homogeneous,
    "Add": _add,
    "Attention": _attention,
    "AveragePool": absorbers.pooled,
    "BatchNormalization": absorbers.batch_normalized,
    "Cast": _cast,
    "Concat": shapes.concatenated,
    "Conv": absorbers.convolved,
    "ConvTranspose": absorbers.convolved,
    "Div": _multiply,
    "Dropout": _homogeneous,
    "Expand": shapes.expanded,
    "Flatten": shapes.reshaped,
    "Gather": shapes.gathered,
    "GatherND": shapes.gathered_nd,
    "GlobalAveragePool": absorbers.pooled,
    "GlobalMaxPool": absorbers.pooled,
    "GroupNormalization": absorbers.normalized_channels,
    "Identity": _homogeneous,
    "InstanceNormalization": absorbers.normalized_channels,
    "LayerNormalization": absorbers.normalized,
    "LeakyRelu": _homogeneous,
    "MatMul": _matmul,
    "Max": _add,
    "MaxPool": absorbers.pooled,
    "Min": _add,
    "Mul": _multiply,
    "Neg": _homogeneous,
    "PRelu": _homogeneous,
    "Pad": shapes.padded,
    "Pow": _pow,
    "RMSNormalization": absorbers.normalized,
    "ReduceMax": absorbers.reduced,
    "ReduceMean": absorbers.reduced,
    "ReduceMin": absorbers.reduced,
    "ReduceSum": absorbers.reduced,
    "Relu": _homogeneous,
    "Reshape": shapes.reshaped,
    "Slice": shapes.sliced,
    "Split": shapes.split,
    "Squeeze": shapes.reshaped,
    "Sub": _add,
    "Sum": _add,
    "Transpose": shapes.transposed,
    "Unsqueeze": shapes.reshaped,
    "Where": _where,
}
