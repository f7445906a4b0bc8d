"""What a small part of a graph computes, such as a mask or the angles of a rotation, found out by running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from qcompile import graph

_MOST_NODES = 100
"""A part with more nodes is not small; it would hold weights."""


@dataclasses.dataclass(frozen=True)
class SmallGraph:
    """The nodes that make a value out of inputs of the graph and sizes of values.

    Attributes:
        value: what is computed.
        numbers: inputs of the graph whose numbers are read.
        shapes: values of which Shape alone is read; they may lie anywhere in the graph.
    """

    value: ir.Value
    numbers: tuple[ir.Value, ...]
    shapes: tuple[ir.Value, ...]

    def compute(self, numbers: Mapping[ir.Value, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray | None:
        """Return the value, by onnx's reference implementation; None where a shape has a dim that no size is given for.

        Args:
            numbers: arrays for the inputs `numbers`.
            sizes: of dims, by their names.
        """
        feed = dict(numbers)
        for value in self.shapes:
            shape = [dim if isinstance(dim, int) else sizes.get(str(dim)) for dim in value.shape or ()]
            known = [size for size in shape if size is not None]
            if value.shape is None or len(known) < len(shape):
                return None
            dtype = value.dtype or ir.DataType.FLOAT
            feed.setdefault(value, np.broadcast_to(np.zeros((), dtype.numpy()), known))
        model = ir.Model(ir.convenience.extract(_graph_of(self.value), list(feed), [self.value]), ir_version=10)
        (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {str(each.name): feed[each] for each in feed})
        return np.asarray(result)


def small_graph(value: ir.Value) -> SmallGraph | None:
    """Return the nodes upstream of a value; None where they are many, or the value is an input or a constant."""
    numbers: dict[ir.Value, None] = {}
    shapes: dict[ir.Value, None] = {}
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None:
            if current.is_graph_input() and not current.is_initializer():
                numbers[current] = None
            continue
        if node in seen:
            continue
        seen.add(node)
        if len(seen) > _MOST_NODES or graph.bodies(node):
            return None
        read = [each for each in node.inputs if each is not None]
        if graph.is_standard(node, "Shape"):
            shapes.update(dict.fromkeys(read))
        else:
            waiting.extend(read)
    return SmallGraph(value, tuple(numbers), tuple(each for each in shapes if each not in numbers)) if seen else None


def _graph_of(value: ir.Value) -> ir.Graph:
    node = value.producer()
    assert node is not None
    assert isinstance(node.graph, ir.Graph)
    return node.graph
