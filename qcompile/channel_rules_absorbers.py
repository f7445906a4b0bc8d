"""Rules of the operators that take up a scale in their weights, and of pooling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.channel_layouts import Blocked, Shape, concrete, full_axis
from qcompile.channel_walk import Walk, describe, follow, operand, same, shape_of, uniform, unscaled


def normalized(node: ir.Node, walk: Walk) -> None:
    """LayerNormalization and RMSNormalization: weight and bias take the scale of the output."""
    unscaled(node, walk, range(len(node.inputs)))
    layout = walk.layout(node.outputs[0])
    if layout is None:
        return
    shape = shape_of(node.outputs[0])
    axis = node.attributes["axis"].as_int() % len(shape) if "axis" in node.attributes else len(shape) - 1
    uniform(node, layout.ids, range(axis))
    ids = concrete(layout.ids, shape)[(0,) * axis]
    for index in _present(node, 1, 2):
        walk.rescale(node, index, ids, layout.power, "output")


def normalized_channels(node: ir.Node, walk: Walk) -> None:
    """InstanceNormalization and GroupNormalization: weight and bias of shape [channels]."""
    unscaled(node, walk, range(len(node.inputs)))
    _vectors(node, walk, (1, 2))


def batch_normalized(node: ir.Node, walk: Walk) -> None:
    """BatchNormalization: weight and bias take the scale of the output; mean and weight make up for the input's."""
    if node.attributes.get_int("training_mode", 0):
        raise Blocked(f"{describe(node)} is in training mode and computes mean and variance itself")
    unscaled(node, walk, range(1, len(node.inputs)))
    _vectors(node, walk, (1, 2))
    layout = walk.layout(node.inputs[0])
    if layout is not None:
        ids = _channels(node, layout.ids, operand(node, 0))
        walk.rescale(node, 1, ids, -layout.power, "input")
        walk.rescale(node, 3, ids, layout.power, "input")


def _vectors(node: ir.Node, walk: Walk, indices: tuple[int, ...]) -> None:
    layout = walk.layout(node.outputs[0])
    if layout is not None:
        ids = _channels(node, layout.ids, node.outputs[0])
        for index in indices:
            walk.rescale(node, index, ids, layout.power, "output")


def _channels(node: ir.Node, ids: np.ndarray, value: ir.Value) -> np.ndarray:
    """Ids of an image [batch, channels, *spatial] as a vector [channels]."""
    uniform(node, ids, [axis for axis in range(ids.ndim) if axis != 1])
    return full_axis(ids, 1, shape_of(value)[1]).reshape(-1)


def _present(node: ir.Node, *indices: int) -> list[int]:
    return [index for index in indices if index < len(node.inputs) and node.inputs[index] is not None]


def convolved(node: ir.Node, walk: Walk) -> None:
    """Conv and ConvTranspose: output channels take a scale in weight and bias; input channels are made up for."""
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    transposed = node.op_type == "ConvTranspose"
    weight = shape_of(operand(node, 1))
    above, below = walk.layout(node.outputs[0]), walk.layout(node.inputs[0])
    if above is not None:
        ids = _channels(node, above.ids, node.outputs[0])
        walk.rescale(node, 1, _on_weight(ids, weight, groups, axis=1 if transposed else 0), above.power, "output")
        for index in _present(node, 2):
            walk.rescale(node, index, ids, above.power, "output")
    if below is not None:
        ids = _channels(node, below.ids, operand(node, 0))
        walk.rescale(node, 1, _on_weight(ids, weight, groups, axis=0 if transposed else 1), -below.power, "input")


def _on_weight(ids: np.ndarray, weight: Shape, groups: int, *, axis: int) -> np.ndarray:
    """Ids of a weight whose `axis` counts these channels: all of them on axis 0, those of one group on axis 1."""
    if axis == 0:
        return ids.reshape(-1, *(1,) * (len(weight) - 1))
    rows = weight[0]
    if not isinstance(rows, int):
        raise Blocked("the shape of a convolution's weight is not known")
    spread = np.repeat(ids.reshape(groups, -1), rows // groups, axis=0)
    return spread.reshape(*spread.shape, *(1,) * (len(weight) - 2))


def pooled(node: ir.Node, walk: Walk) -> None:
    """Pooling over the spatial axes of [batch, channels, *spatial]."""
    for value in (node.inputs[0], node.outputs[0]):
        layout = walk.layout(value)
        if layout is not None:
            uniform(node, layout.ids, range(2, layout.ids.ndim))
    follow(node, walk, same, same)


def reduced(node: ir.Node, walk: Walk) -> None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin over axes whose elements share one scale."""
    dropped = _reduced_axes(node)
    keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1

    def up(ids: np.ndarray) -> np.ndarray:
        ids = ids if keeps else np.expand_dims(ids, dropped)
        uniform(node, ids, dropped)
        return ids

    def down(ids: np.ndarray) -> np.ndarray:
        uniform(node, ids, dropped)
        return ids if keeps else ids.squeeze(dropped)

    follow(node, walk, up, down)


def _reduced_axes(node: ir.Node) -> tuple[int, ...]:
    """Axes that a reduction drops: without any it drops all of them, unless an attribute says otherwise."""
    rank = len(shape_of(operand(node, 0)))
    given = node.inputs[1] if len(node.inputs) > 1 else None
    # Before opset 18, and 13 for ReduceSum, the axes were an attribute.
    attribute = np.asarray(node.attributes.get_ints("axes", ()), np.int64)
    axes = attribute if given is None else graph.constant_array(given)
    if axes is None:
        raise Blocked(f"{describe(node)} reduces axes that are not constant")
    if axes.size == 0 and not node.attributes.get_int("noop_with_empty_axes", 0):
        return tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes.reshape(-1)))
