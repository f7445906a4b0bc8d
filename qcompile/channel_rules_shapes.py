"""Rules of the operators that only move elements: reshapes, slices, concatenation, repetition."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.channel_layouts import Blocked, Shape, full_axis, reshape, scatter, with_rank
from qcompile.channel_walk import Walk, describe, follow, operand, same, shape_of, together, uniform, unscaled


def reshaped(node: ir.Node, walk: Walk) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten: the elements keep their order."""
    below, above = _with_common_names(node, shape_of(operand(node, 0)), shape_of(node.outputs[0]))
    follow(node, walk, lambda ids: reshape(ids, above, below), lambda ids: reshape(ids, below, above))


def _with_common_names(node: ir.Node, source: Shape, target: Shape) -> tuple[Shape, Shape]:
    """Name sizes that are not known but the same on both sides: copied by a 0 of Reshape, or kept by Squeeze."""
    pairs: list[tuple[int, int]] = []
    if node.op_type == "Reshape":
        sizes = graph.constant_array(node.inputs[1])
        literal = "allowzero" in node.attributes and node.attributes["allowzero"].as_int() == 1
        if sizes is not None and not literal:
            pairs = [(axis, axis) for axis in np.flatnonzero(sizes == 0).tolist()]
    elif node.op_type in ("Squeeze", "Unsqueeze"):
        kept = [[axis for axis, dim in enumerate(shape) if dim != 1] for shape in (source, target)]
        pairs = list(zip(*kept, strict=True)) if len(kept[0]) == len(kept[1]) else []
    before, after = list(source), list(target)
    for left, right in pairs:
        if not isinstance(before[left], int) or not isinstance(after[right], int):
            before[left] = after[right] = f"axis {left} of the input"
    return tuple(before), tuple(after)


def transposed(node: ir.Node, walk: Walk) -> None:
    """Transpose."""
    rank = len(shape_of(node.outputs[0]))
    perm = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]
    inverse = np.argsort(perm)
    follow(node, walk, lambda ids: ids.transpose(inverse), lambda ids: ids.transpose(perm))


def expanded(node: ir.Node, walk: Walk) -> None:
    """Expand: an input axis of size 1 has one scale for all its copies."""
    rank = len(shape_of(node.outputs[0]))
    follow(node, walk, same, lambda ids: with_rank(ids, rank))


def padded(node: ir.Node, walk: Walk) -> None:
    """Pad with zeros, or with copies, along axes whose elements share one scale."""
    unscaled(node, walk, range(1, len(node.inputs)))
    fill = graph.constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if fill is None or fill.any():
        raise Blocked(f"{describe(node)} pads with something else than zero")
    moved = _padded_axes(node)
    for value in (node.inputs[0], node.outputs[0]):
        layout = walk.layout(value)
        if layout is not None:
            uniform(node, layout.ids, moved)
    follow(node, walk, same, same)


def _padded_axes(node: ir.Node) -> list[int]:
    """Axes whose elements a Pad moves: it may add as many at one end as it takes away at the other."""
    rank = len(shape_of(operand(node, 0)))
    pads, axes = graph.constant_array(operand(node, 1)), _optional(node, 3)
    if pads is None:
        return list(range(rank))
    padded_axes = np.arange(rank) if axes is None else axes.reshape(-1) % rank
    moved: list[int] = padded_axes[pads.reshape(2, -1).any(axis=0)].tolist()
    return moved


def split(node: ir.Node, walk: Walk) -> None:
    """Split: every output takes its part of the channels."""
    source = shape_of(operand(node, 0))
    axis = node.attributes["axis"].as_int() % len(source) if "axis" in node.attributes else 0
    start = 0
    for index, output in enumerate(node.outputs):
        size = shape_of(output)[axis]
        if not isinstance(size, int):
            _along_other_axes(node, walk, axis, index)
            continue
        _select(node, walk, axis, np.arange(start, start + size), output=index)
        start += size


def _along_other_axes(node: ir.Node, walk: Walk, axis: int, output: int = 0) -> None:
    for value in (node.inputs[0], node.outputs[output]):
        layout = walk.layout(value)
        if layout is not None:
            uniform(node, layout.ids, [axis])
    follow(node, walk, same, same, output=output)


def _select(node: ir.Node, walk: Walk, axis: int, picked: np.ndarray, *, output: int = 0) -> None:
    """Relate an input and an output that has elements `picked` of its axis; a 0-d `picked` drops the axis."""
    size = shape_of(operand(node, 0))[axis]

    def up(ids: np.ndarray) -> np.ndarray:
        return scatter(ids if picked.ndim else np.expand_dims(ids, axis), axis, size, picked.reshape(-1))

    def down(ids: np.ndarray) -> np.ndarray:
        return full_axis(ids, axis, size).take(picked, axis=axis)

    follow(node, walk, up, down, output=output)


def sliced(node: ir.Node, walk: Walk) -> None:
    """Slice with constant bounds on the axes that are scaled; any bounds on the others."""
    source = shape_of(operand(node, 0))
    starts, ends = graph.constant_array(node.inputs[1]), graph.constant_array(node.inputs[2])
    axes = _optional(node, 3)
    axes = np.arange(len(source)) if axes is None else axes.reshape(-1) % len(source)
    if axes.size != 1:
        raise Blocked(f"{describe(node)} cuts several axes at once")
    axis = int(axes[0])
    size = source[axis]
    if starts is None or ends is None or not isinstance(size, int):
        return _along_other_axes(node, walk, axis)
    steps = _optional(node, 4)
    step = 1 if steps is None else int(steps.item())
    if step < 0:
        raise Blocked(f"{describe(node)} runs backwards")
    return _select(node, walk, axis, np.arange(size)[int(starts.item()) : int(ends.item()) : step])


def _optional(node: ir.Node, index: int) -> np.ndarray | None:
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    array = graph.constant_array(node.inputs[index])
    if array is None:
        raise Blocked(f"input {index} of {describe(node)} is not a constant")
    return array


def gathered(node: ir.Node, walk: Walk) -> None:
    """Gather: constant indices pick channels; others (an embedding) only where the axis has one scale."""
    unscaled(node, walk, [1])
    source = shape_of(operand(node, 0))
    axis = node.attributes["axis"].as_int() % len(source) if "axis" in node.attributes else 0
    indices = graph.constant_array(node.inputs[1])
    if indices is not None and indices.ndim < 2:
        return _select(node, walk, axis, indices)
    rank = len(shape_of(operand(node, 1)))

    def up(ids: np.ndarray) -> np.ndarray:
        uniform(node, ids, range(axis, axis + rank))
        return ids.reshape(*ids.shape[:axis], 1, *ids.shape[axis + rank :])

    def down(ids: np.ndarray) -> np.ndarray:
        uniform(node, ids, [axis])
        return ids.reshape(*ids.shape[:axis], *(1,) * rank, *ids.shape[axis + 1 :])

    return follow(node, walk, up, down)


def gathered_nd(node: ir.Node, walk: Walk) -> None:
    """GatherND with constant indices of shape [n, 1], which is a Gather on the first axis."""
    indices = graph.constant_array(node.inputs[1])
    batch = node.attributes["batch_dims"].as_int() if "batch_dims" in node.attributes else 0
    if indices is None or indices.ndim != 2 or indices.shape[1] != 1 or batch:
        raise Blocked(f"{describe(node)} gathers along several axes")
    _select(node, walk, 0, indices[:, 0])


def concatenated(node: ir.Node, walk: Walk) -> None:
    """Concat: every input takes its part of the channels; one scale for all where the joined axis is not scaled."""
    shape = shape_of(node.outputs[0])
    axis = node.attributes["axis"].as_int() % len(shape)
    layouts = [walk.layout(value) for value in (node.outputs[0], *node.inputs)]
    if all(layout is None or layout.ids.shape[axis] == 1 for layout in layouts):
        return together(node, walk, range(len(node.inputs)))
    start = 0
    for index in range(len(node.inputs)):
        size = shape_of(operand(node, index))[axis]
        if not isinstance(size, int):
            raise Blocked(f"{describe(node)} joins parts of unknown size")
        _part(node, walk, axis, index, np.arange(start, start + size))
        start += size
    return None


def _part(node: ir.Node, walk: Walk, axis: int, index: int, place: np.ndarray) -> None:
    size = shape_of(node.outputs[0])[axis]
    follow(
        node,
        walk,
        lambda ids: full_axis(ids, axis, size).take(place, axis=axis),
        lambda ids: scatter(ids, axis, size, place),
        index=index,
    )
