"""The walk of one scale through the graph: what is known so far, and what still has to be looked at.

`channel_rules.py` holds one rule per operator; `channel_scales.py` runs them to the end.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.channel_layouts import Blocked, Layout, Shape, Ties, concrete, merge, narrow, with_rank

Side = Literal["input", "output"]


class Undecided(Exception):
    """A scale can go one of several ways through the node; the walk starts again with each of them."""

    def __init__(self, node: ir.Node, options: int) -> None:
        super().__init__(node.name)
        self.node = node
        self.options = options


@dataclasses.dataclass(frozen=True, eq=False)
class Rescale:
    """Multiply a constant, as this one node reads it, by factor[ids] ** power.

    Attributes:
        node: the reader.
        index: which of its inputs.
        ids: int array that broadcasts against the constant; -1 where nothing is multiplied.
        power: exponent; negative in a divisor, and where the constant makes up for a scaled input.
        side: whether the constant takes up the scale of the node's output or makes up for that of its input.
    """

    node: ir.Node
    index: int
    ids: np.ndarray
    power: float
    side: Side


def describe(node: ir.Node) -> str:
    """Operator and name of a node, for reasons."""
    return f"{node.op_type} {graph.layer_name(node)!r}"


class Walk:
    """Layouts of all values that a scale has reached; grows until every rule holds."""

    def __init__(self, choices: Mapping[ir.Node, int]) -> None:
        self.ties = Ties()
        self.rescales: dict[tuple[ir.Node, int, Side], Rescale] = {}
        self._layouts: dict[ir.Value, Layout] = {}
        self._pending: collections.deque[ir.Node] = collections.deque()
        self._choices = choices

    def next_node(self) -> ir.Node | None:
        """Take a node whose rule has to be looked at."""
        return self._pending.popleft() if self._pending else None

    def layout(self, value: ir.Value | None) -> Layout | None:
        """Layout of a value, or None when it is not scaled."""
        return None if value is None else self._layouts.get(value)

    def put(self, value: ir.Value, ids: np.ndarray, power: float) -> None:
        """Ask for a scale on a value that is computed by the model."""
        if (ids < 0).all():
            return
        producer = value.producer()
        if value.is_graph_output():
            raise Blocked(f"{value.name!r} is an output of the graph")
        if producer is None:
            raise Blocked(f"{value.name!r} is an input of the graph")
        before = self._layouts.get(value)
        if before is not None:
            if not math.isclose(before.power, power):
                raise Blocked(f"{value.name!r} would have to take two different powers of the scale")
            merged = merge(before.ids, ids, self.ties)
            if merged.shape == before.ids.shape and ((merged >= 0) == (before.ids >= 0)).all():
                return
            ids = merged
        self._layouts[value] = Layout(ids, power)
        self._pending.extend(dict.fromkeys((producer, *value.consumers())))

    def constrain(self, node: ir.Node, index: int, ids: np.ndarray, power: float) -> None:
        """Ask for a scale on an operand that broadcasts: on the value, or on the constant that stands there."""
        value = node.inputs[index]
        assert value is not None
        if graph.constant(value) is None:
            self.put(value, narrow(ids, shape_of(value)), power)
        else:
            self.rescale(node, index, ids, power, "output")

    def rescale(self, node: ir.Node, index: int, ids: np.ndarray, power: float, side: Side) -> None:
        """Multiply a constant; `side` says whose scale it takes up, so that both can be asked for."""
        value = node.inputs[index]
        tensor = graph.constant(value)
        if value is None or tensor is None:
            raise Blocked(f"input {index} of {describe(node)} is not a constant")
        if not tensor.dtype.is_floating_point():
            raise Blocked(f"input {index} of {describe(node)} is not floating point")
        shape = tensor.shape.numpy()
        while ids.ndim > len(shape) and ids.shape[0] == 1:
            ids = ids[0]
        grown = np.broadcast_shapes(ids.shape, shape)
        if math.prod(grown) > max(ids.size, math.prod(shape)):
            raise Blocked(f"the constant of {describe(node)} would grow to shape {list(grown)}")
        self.rescales[node, index, side] = Rescale(node, index, ids, power, side)

    def choose(self, node: ir.Node, options: int) -> int:
        """Return which way this walk goes at a node; raises Undecided the first time."""
        if node not in self._choices:
            raise Undecided(node, options)
        return self._choices[node]


def shape_of(value: ir.Value) -> Shape:
    """Sizes of a value: int, name of a symbol or None; raises Blocked when its rank is not known."""
    if value.shape is None or 0 in value.shape.dims:
        raise Blocked(f"the shape of {value.name!r} is not known")
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape.dims)


def operand(node: ir.Node, index: int) -> ir.Value:
    """Input of a node; raises Blocked when it is left out."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise Blocked(f"{describe(node)} has no input {index}")
    return value


def uniform(node: ir.Node, ids: np.ndarray, axes: Sequence[int]) -> None:
    """Raise Blocked when the scale differs along one of these axes, which the node mixes."""
    if any(ids.shape[axis] > 1 for axis in axes):
        raise Blocked(f"{describe(node)} mixes channels that would have different scales")


def unscaled(node: ir.Node, walk: Walk, indices: Sequence[int]) -> None:
    """Raise Blocked when a scale has reached one of these inputs."""
    if any(walk.layout(node.inputs[index]) is not None for index in indices if index < len(node.inputs)):
        raise Blocked(f"{describe(node)} computes something else from a scaled input")


def follow(
    node: ir.Node,
    walk: Walk,
    up: Callable[[np.ndarray], np.ndarray],
    down: Callable[[np.ndarray], np.ndarray],
    *,
    index: int = 0,
    output: int = 0,
    degree: float = 1.0,
) -> None:
    """Relate one input and one output, f(a * x) = a**degree * f(x), in both directions.

    `up` turns the ids of the output into those of the input, `down` the other way.
    """
    above = walk.layout(node.outputs[output])
    if above is not None:
        walk.constrain(node, index, up(above.ids), above.power / degree)
    below = walk.layout(node.inputs[index])
    if below is not None:
        walk.put(node.outputs[output], down(below.ids), below.power * degree)


def together(node: ir.Node, walk: Walk, operands: Sequence[int]) -> None:
    """Relate the first output and these operands, which broadcast: f(a * x, a * y) = a * f(x, y)."""
    output = node.outputs[0]
    reached = [walk.layout(output), *(walk.layout(node.inputs[index]) for index in operands)]
    layouts = [layout for layout in reached if layout is not None]
    shape = shape_of(output)
    ids = with_rank(layouts[0].ids, len(shape))
    for layout in layouts[1:]:
        ids = merge(ids, layout.ids, walk.ties)
    walk.put(output, ids, layouts[0].power)
    for index in operands:
        is_constant = graph.constant(node.inputs[index]) is not None
        walk.constrain(node, index, concrete(ids, shape) if is_constant else ids, layouts[0].power)


def same(ids: np.ndarray) -> np.ndarray:
    """Elements stay where they are."""
    return ids
