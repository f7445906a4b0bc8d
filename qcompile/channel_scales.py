"""Channel scales: where can a per-channel scale of a value go?

SmoothQuant, AWQ and cross-layer equalization multiply the channels of a linear's input by a vector and divide its
weight rows by it. This module answers for all of them whether the vector can be taken up by the constants in front:
`solve` walks from the value through operators that keep channels apart to weights that absorb the scale, and to every
other reader of a scaled value, which has to make up for it. Nothing is matched by name or by architecture.
"""

from __future__ import annotations

import dataclasses

import networkx as nx
import numpy as np
import onnx_ir as ir

from qcompile import channel_rules, graph, initializers
from qcompile.channel_layouts import Blocked
from qcompile.channel_walk import Rescale, Undecided, Walk, shape_of

MAX_WAYS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """A scale fits: multiplying these constants multiplies the value's channels and changes no output of the model.

    Attributes:
        rescales: constants to multiply, with the factor's index for each of their elements.
        groups: int array [channels]; channels of one group must have the same factor.
    """

    rescales: tuple[Rescale, ...]
    groups: np.ndarray

    @property
    def group_count(self) -> int:
        """Number of factors that can be chosen."""
        return int(self.groups.max()) + 1

    @property
    def absorbers(self) -> tuple[ir.Node, ...]:
        """Nodes whose constants take up the scale."""
        return tuple(dict.fromkeys(rescale.node for rescale in self.rescales if rescale.side == "output"))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The algebra of the graph does not allow a scale of this value.

    Attributes:
        reason: which node or value forbids it.
    """

    reason: str


def solve(value: ir.Value, axis: int) -> Placement | Refusal:
    """Say which constants can take up factors on the channels of a value.

    Where a product of two computed values is met, each factor is tried as the carrier of the scale, the first one
    first. Every shape on the way has to be known as far as the channels need it: run shape inference before.

    Args:
        value: the value whose channels are to be multiplied.
        axis: its channel axis; may be negative.
    """
    waiting: list[dict[ir.Node, int]] = [{}]
    reasons: dict[str, None] = {}
    for _ in range(MAX_WAYS):
        if not waiting:
            break
        choices = waiting.pop()
        try:
            return _walk(value, axis, choices)
        except Undecided as question:
            waiting.extend({**choices, question.node: way} for way in reversed(range(question.options)))
        except Blocked as refusal:
            reasons[str(refusal)] = None
    return Refusal("; ".join(reasons))


def _walk(value: ir.Value, axis: int, choices: dict[ir.Node, int]) -> Placement:
    shape = shape_of(value)
    channels = shape[axis]
    if not isinstance(channels, int):
        raise Blocked(f"the number of channels of {value.name!r} is not known")
    walk = Walk(choices)
    ids = np.arange(channels).reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])
    walk.put(value, ids, 1.0)
    while (node := walk.next_node()) is not None:
        if node.graph is not value.graph:
            raise Blocked(f"{node.name!r} in a subgraph reads {value.name!r}")
        channel_rules.apply(node, walk)
    groups = _groups(channels, walk.ties.pairs)
    rescales = tuple(
        dataclasses.replace(rescale, ids=np.where(rescale.ids < 0, -1, groups[rescale.ids]))
        for rescale in walk.rescales.values()
    )
    return Placement(rescales, groups)


def _groups(channels: int, pairs: set[tuple[int, int]]) -> np.ndarray:
    """Number the connected components of the channels, in the order of their first channel."""
    ties = nx.Graph()
    ties.add_nodes_from(range(channels))
    ties.add_edges_from(pairs)
    groups = np.empty(channels, dtype=np.int64)
    for index, component in enumerate(sorted(nx.connected_components(ties), key=min)):
        groups[list(component)] = index
    return groups


def multiply(placement: Placement, factors: np.ndarray) -> None:
    """Multiply the value that a placement was found for, by its constants.

    Args:
        placement: answer of `solve` on the graph as it still is.
        factors: [placement.group_count] positive finite factors.
    """
    padded = np.append(factors, 1.0)
    for rescale in placement.rescales:
        multiply_constant(rescale.node, rescale.index, padded[rescale.ids] ** rescale.power)


def multiply_constant(node: ir.Node, index: int, factor: np.ndarray) -> None:
    """Replace a constant, as this node reads it, by its lazy product with an array that broadcasts.

    What else reads the constant keeps reading it as it was.
    """
    value = node.inputs[index]
    tensor = graph.constant(value)
    assert value is not None
    assert tensor is not None
    shape = np.broadcast_shapes(tensor.shape.numpy(), factor.shape)
    single = factor.astype(np.float32)

    def product(array: np.ndarray) -> np.ndarray:
        return np.asarray((array * single).astype(array.dtype, copy=False))

    name = f"{value.name}.scaled"
    node.replace_input_with(index, initializers.derive_initializer(value, name, shape, product))
