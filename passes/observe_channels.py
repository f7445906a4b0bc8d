"""Instrumentation: writes observers of activations into a model, as ordinary nodes with small results."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import ClassVar

import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask, positions_key
from qcompile.calibration_observation import SAMPLING_INPUT, Observation, RowGroup
from qcompile.calibration_observers import ObserverWriter
from qcompile.contract import Keeps, Pass
from qcompile.errors import CalibrationError


@dataclasses.dataclass(frozen=True)
class ObserveChannels(Pass):
    """x  ->  x, with the minimum, maximum and sum of each channel, some rows and x xT as extra graph outputs.

    Only for a model that is run for its statistics: the extra outputs stay in it. A row is the vector of channels at
    one position of x. Positions that a padding mask rules out are left out of everything; a mask [batch, sequence]
    applies to x that has these two dims besides its channels, [batch, sequence, channels], in any order and possibly
    with others, and to x with the two flattened, [batch * sequence, channels]. Where the dims of x are not known before
    the model runs, the graph compares them itself. Other values have no padding that could be told apart.

    Attributes:
        axes: name of a value -> its channel axis.
        rows: most rows of a value that one run returns.
        gram: names of the values for which x xT is summed.
        masks: the padding masks among the graph inputs.

    Raises:
        CalibrationError: a name of `axes` is no value of the main graph, or the rank that its axis needs is unknown.
    """

    axes: Mapping[str, int]
    rows: int = 512
    gram: Collection[str] = ()
    masks: tuple[PaddingMask, ...] = ()

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "the values named in axes"

    def call(self, model: ir.Model) -> Observation:
        """Append the observers; a model that has them already is returned as it is."""
        values = _named_values(model.graph)
        grouped: dict[object, list[str]] = {}
        for name, axis in self.axes.items():
            _check(name, axis, values)
            grouped.setdefault(positions_key(values[name], axis), []).append(name)
        groups = tuple(RowGroup(tuple(names), f"qcompile.observe/count/{names[0]}") for names in grouped.values())
        if SAMPLING_INPUT in values:
            return Observation(model, modified=False, groups=groups)
        sampling = ir.val(SAMPLING_INPUT, ir.DataType.FLOAT, [len(groups), 3])
        model.graph.inputs.append(sampling)
        writer = ObserverWriter(model.graph, {mask: values[mask.name] for mask in self.masks}, self.rows)
        for index, group in enumerate(groups):
            observed = {name: (values[name], self.axes[name]) for name in group.values}
            writer.observe(observed, group.count, writer.row_of(sampling, index), self.gram)
        return Observation(model, modified=True, groups=groups)


def _named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    outputs = [value for node in graph for value in node.outputs]
    return {str(value.name): value for value in [*graph.inputs, *outputs]}


def _check(name: str, axis: int, values: Mapping[str, ir.Value]) -> None:
    if name not in values:
        raise CalibrationError(name, "the main graph has no such value", "Observe an input or a node's output")
    shape = values[name].shape
    if shape is None and axis != -1:
        raise CalibrationError(
            name, f"its rank is unknown, and its channels are on axis {axis}", "Infer the shapes first"
        )
    if shape is not None and not -len(shape) <= axis < len(shape):
        raise CalibrationError(name, f"it has rank {len(shape)} and no axis {axis}", "Name the axis of its channels")
