"""Where a model is cut, so that what stands in front need not run again for the statistics of what stands behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import onnx_ir as ir

from qcompile.calibration_spool import FeedFile
from qcompile.graph import bodies


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """The samples at a cut of a model.

    Attributes:
        samples: for each sample the inputs of the model, and the values at the cut.
        fingerprint: of the samples, and of what stands in front of the cut.
        cut: names of the values at the cut.
        used: numbers of the samples that the last collection from here ran; empty: all of them.
    """

    samples: FeedFile
    fingerprint: str
    cut: tuple[str, ...] = ()
    used: set[int] = dataclasses.field(default_factory=set)


def behind(model: ir.Model, cut: Collection[str], names: Collection[str]) -> ir.Model:
    """Return a copy of what a model computes of some values, its outputs, which takes the values of a cut as inputs.

    Of the dims of these it knows no numbers: those that a file states of inner values may be wrong, which runtimes pass
    over, and refuse of inputs.
    """
    given = dict.fromkeys([*(str(value.name) for value in model.graph.inputs), *cut])
    graph = ir.convenience.extract(model.graph, list(given), list(names))
    for value in graph.inputs:
        if value.name in cut:
            value.shape = _named(value.shape)
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def computing(model: ir.Model, cut: Collection[str], names: Collection[str]) -> ir.Model | None:
    """Return what a model computes of values behind a cut, which are its outputs, in the order of their names.

    Those that are at the cut, as what goes around a block is, or inputs of the model, are none of them; None where none
    is left, as between two towers.
    """
    given = {*(str(value.name) for value in model.graph.inputs), *cut}
    computed = [name for name in sorted(names) if name not in given]
    return behind(model, cut, computed) if computed else None


def find_cut(model: ir.Model, done: Collection[ir.Node], later: Collection[ir.Node]) -> tuple[str, ...] | None:
    """Return the names of the values at the best cut in front of the `later` nodes, behind as many as can be of `done`.

    The best has the fewest values, and is the last of those: in a decoder the residual stream alone. A value that
    hangs on none of `done`, like a mask, is no part of it: it is computed anew. None where a value is no tensor of
    known type and rank, which sessions ask of inputs, or nothing is done in front of them.

    Args:
        model: as it is now.
        done: nodes of layers that will not change any more.
        later: nodes of those that may; they and what hangs on them stand behind the cut.
    """
    nodes = list(model.graph)
    place = {node: index for index, node in enumerate(nodes)}
    end = min(place[node] for node in later)
    start = max((place[node] for node in done if place.get(node, end) < end), default=end)
    last_read: dict[ir.Value, int] = {}
    hangs: set[ir.Value] = set()
    for index, node in enumerate(nodes):
        read = _read(node)
        last_read.update(dict.fromkeys(read, index))
        if node in done or not hangs.isdisjoint(read):
            hangs.update(node.outputs)
    written = [value for node in nodes[:end] for value in node.outputs if value in hangs]

    def across(at: int) -> list[ir.Value]:
        return [value for value in written if place[_producer(value)] < at <= last_read.get(value, -1)]

    best = min(range(end, start, -1), key=lambda at: len(across(at)), default=None)
    if best is None:
        return None
    found = across(best)
    if not all(value.name and isinstance(value.type, ir.TensorType) and value.shape is not None for value in found):
        return None
    return tuple(str(value.name) for value in found)


def _named(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([None if isinstance(dim, int) else dim for dim in shape])


def _read(node: ir.Node) -> set[ir.Value]:
    """What a node reads, and what its bodies read."""
    inside = {value for body in bodies(node) for inner in body for value in _read(inner)}
    return inside | {value for value in node.inputs if value is not None}


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
