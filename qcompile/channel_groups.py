"""Groups: values that one vector of factors scales together, and the layers that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from qcompile import channel_scales, graph, layers
from qcompile.channel_markers import by_input, insert
from qcompile.channel_markers import find as find_markers
from qcompile.channel_scales import Placement, Refusal
from qcompile.channel_walk import Rescale
from qcompile.layers import Layer

Readings = tuple[tuple[ir.Value, tuple[Layer, ...]], ...]

_SOURCES = ("Conv", "ConvTranspose", "MatMul", "BatchNormalization")


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Values whose channels have to be scaled by the same factors.

    Attributes:
        readings: each value with the layers that read it along its channels, in graph order.
        answer: where the factors of all of them go, or why they cannot; then there is one value.
    """

    readings: Readings
    answer: Placement | Refusal

    @property
    def folds(self) -> bool:
        """True when the constants in front take up the factors."""
        return isinstance(self.answer, Placement)

    @property
    def joined(self) -> bool:
        """True where several layers take up the factors: the values are sums, or parts put side by side."""
        absorbers = self.answer.absorbers if isinstance(self.answer, Placement) else ()
        return sum(graph.is_standard(node, *_SOURCES) for node in absorbers) > 1

    @property
    def linears(self) -> bool:
        """True for one value that linears read."""
        return len(self.readings) == 1 and isinstance(self.readings[0][1][0], graph.Linear)


def find(model_layers: Iterable[Layer]) -> list[Group]:
    """Group what the layers read, in the order of the first layer of each group.

    The values of a residual stream, or a value and its average over the positions, have their scales in the same
    constants: a scale of one of them is a scale of all.
    """
    readers: dict[tuple[ir.Value, int], list[Layer]] = {}
    for x, found in by_input(model_layers).items():
        for layer in found:
            readers.setdefault((x, layers.input_axis(layer)), []).append(layer)
    groups: dict[object, Group] = {}
    for (x, axis), found in readers.items():
        answer = channel_scales.solve(x, axis)
        key = _place(answer) if isinstance(answer, Placement) else (x, axis)
        before = groups[key].readings if key in groups else ()
        groups[key] = Group((*before, (x, tuple(found))), answer)
    return list(groups.values())


def _place(placement: Placement) -> object:
    """Same for values whose scales multiply the same elements of the same constants by the same factors."""
    return frozenset(
        (part.node, part.index, part.side, part.power, part.ids.shape, part.ids.tobytes())
        for part in placement.rescales
    )


class Claims:
    """Elements of constants that have taken up a scale: two scales that meet in one value would smooth it twice."""

    def __init__(self) -> None:
        self._taken: dict[tuple[ir.Node, int], list[np.ndarray]] = {}
        self._factors: dict[tuple[ir.Node, int], np.ndarray] = {}

    def overlap(self, answer: Placement | Refusal) -> bool:
        """True where some of the elements are taken already."""
        return any(
            np.any((taken >= 0) & (part.ids >= 0))
            for part in _outputs(answer)
            for taken in self._taken.get((part.node, part.index), ())
        )

    def take(self, answer: Placement | Refusal, factors: np.ndarray) -> None:
        """Note what folding these factors, [channels], will multiply."""
        if isinstance(answer, Refusal):
            return
        shared = np.ones(answer.group_count + 1)
        shared[answer.groups] = factors
        for part in _outputs(answer):
            key = part.node, part.index
            self._taken.setdefault(key, []).append(part.ids)
            factor = (shared[part.ids] ** part.power).astype(np.float32)
            self._factors[key] = self._factors.get(key, np.float32(1)) * factor

    def weight(self, layer: Layer) -> np.ndarray:
        """Weight of a layer as it will be once the scales behind it are folded, float32."""
        weight = graph.constant_array(layer.weight)
        assert weight is not None
        key = layers.node_of(layer), 1
        return np.asarray(np.asarray(weight, np.float32) * self._factors.get(key, np.float32(1)))


def claimed(model: ir.Model) -> tuple[Claims, frozenset[ir.Value]]:
    """Return what the scales that a model holds already have taken up, and the values that come from one."""
    claims, scaled = Claims(), set()
    for marker in find_markers(model):
        claims.take(channel_scales.solve(marker.x, marker.axis), marker.factors)
        scaled.add(marker.node.outputs[0])
    return claims, frozenset(scaled)


def scale_first(group: Group, scale: np.ndarray, claims: Claims) -> None:
    """Divide the first value of a group by a scale, [channels], in front of its layers, whose weights take it up."""
    x, readers = group.readings[0]
    insert(x, 1 / scale, readers)
    for layer in readers:
        multiply_rows(layer, scale)
    claims.take(group.answer, 1 / scale)


def _outputs(answer: Placement | Refusal) -> list[Rescale]:
    rescales = answer.rescales if isinstance(answer, Placement) else ()
    return [part for part in rescales if part.side == "output"]


def kernel(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Return the weight of a layer as [groups, channels / groups, outputs / groups, taps]."""
    if isinstance(layer, graph.Linear):
        return weight[None, :, :, None]
    groups = layer.node.attributes.get_int("group", 1)
    flat = weight.reshape(*weight.shape[:2], -1)
    parts = flat.reshape(groups, len(flat) // groups, *flat.shape[1:])
    return parts if layer.transposed else parts.transpose(0, 2, 1, 3)


def multiply_rows(layer: Layer, factors: np.ndarray) -> None:
    """Multiply what the weight of a layer holds for each input channel by factors, [channels]."""
    if isinstance(layer, graph.Linear):
        return channel_scales.multiply_constant(layer.matmul, 1, factors[:, None])
    shape = layer.weight.const_value.shape.numpy() if layer.weight.const_value is not None else ()
    groups = layer.node.attributes.get_int("group", 1)
    rows = factors[:, None] if layer.transposed else np.repeat(factors.reshape(groups, -1), shape[0] // groups, axis=0)
    return channel_scales.multiply_constant(layer.node, 1, rows.reshape(*rows.shape, *(1,) * (len(shape) - 2)))
