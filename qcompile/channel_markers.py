"""Markers: a per-channel scale written into the graph as one Mul that linears or convolutions read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import new_initializer
from qcompile.layers import Layer, node_of

AnyLayer = TypeVar("AnyLayer", bound=Layer)


@dataclasses.dataclass(frozen=True, eq=False)
class Marker:
    """Mul of a value by a constant vector over its channels, with nothing but linears or convolutions behind.

    Attributes:
        node: the Mul.
        x: the value that it multiplies.
        constant: the initializer that holds the vector.
        axis: channel axis of x, -1 for linears and 1 for convolutions.
        layers: what reads the product, in graph order.
    """

    node: ir.Node
    x: ir.Value
    constant: ir.Value
    axis: int
    layers: tuple[Layer, ...]

    @property
    def factors(self) -> np.ndarray:
        """The vector, [channels]."""
        array = graph.constant_array(self.constant)
        assert array is not None
        return array.reshape(-1)


def by_input(layers: Iterable[AnyLayer]) -> dict[ir.Value, list[AnyLayer]]:
    """Group layers by the value that they read, in the order given."""
    groups: dict[ir.Value, list[AnyLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.x, []).append(layer)
    return groups


def find(model: ir.Model) -> list[Marker]:
    """Every marker of the main graph, in graph order."""
    layers: list[Layer] = [*graph.linears(model), *graph.convolutions(model)]
    readers = by_input(layers)
    products = (node for node in model.graph if graph.is_standard(node, "Mul"))
    found = (_marker(node, readers.get(node.outputs[0], [])) for node in products)
    return [marker for marker in found if marker is not None]


def _marker(node: ir.Node, layers: Sequence[Layer]) -> Marker | None:
    output = node.outputs[0]
    computed = [value for value in node.inputs if graph.constant(value) is None]
    constants = [value for value in node.inputs if graph.constant(value) is not None]
    if len(computed) != 1 or len(layers) != len(output.uses()) or not layers or output.is_graph_output():
        return None
    kinds = {type(layer) for layer in layers}
    axis = 1 if kinds == {graph.Convolution} else -1
    x, constant = computed[0], constants[0]
    if len(kinds) > 1 or x is None or x.shape is None or constant is None or constant.shape is None:
        return None
    size = constant.const_value.size if constant.const_value is not None else 0
    aligned = (*(1,) * (len(x.shape) - len(constant.shape)), *constant.shape.dims)
    if size < 2 or len(aligned) != len(x.shape) or aligned[axis] != size or x.shape[axis] != size:
        return None
    return Marker(node, x, constant, axis, tuple(layers))


def insert(x: ir.Value, factors: np.ndarray, layers: Sequence[Layer]) -> ir.Node:
    """Write Mul(x, factors) in front of layers that read x; their weights are left as they are.

    Args:
        x: the value, of known rank in front of convolutions; other readers keep reading it.
        factors: float [channels].
        layers: linears, or convolutions, that read x, in graph order.
    """
    first = node_of(layers[0])
    owner = first.graph
    assert isinstance(owner, ir.Graph)
    trailing = len(x.shape) - 2 if isinstance(layers[0], graph.Convolution) and x.shape is not None else 0
    name = graph.unique_name(owner, f"{x.name}.smoothed")
    array = factors.astype(np.float32).reshape(-1, *(1,) * trailing)
    constant = new_initializer(owner, f"{name}.factors", array)
    node = ir.node("Mul", [x, constant], name=name)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, x.shape, x.type
    owner.insert_before(first, node)
    for layer in layers:
        node_of(layer).replace_input_with(0, node.outputs[0])
    return node


def remove(marker: Marker) -> None:
    """Take a marker out of the graph; what read it reads x."""
    owner = marker.node.graph
    assert isinstance(owner, ir.Graph)
    ir.convenience.replace_all_uses_with(marker.node.outputs[0], marker.x)
    owner.remove(marker.node, safe=True)
    if not marker.constant.uses() and not marker.constant.is_graph_output():
        owner.initializers.pop(str(marker.constant.name))
