"""What an instrumented model tells: the names of its extra inputs and outputs, and which rows it returns.

This is the agreement between `passes.observe_channels`, which writes the observers into the graph, and
`calibration.Calibrator`, which runs them. A row is the vector of channels at one position of a value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal, Protocol

import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.contract import Result

Statistic = Literal["minimum", "maximum", "sum", "rows", "gram"]

SAMPLING_INPUT = "qcompile.observe/sampling"
"""Extra graph input, float32 [groups, 3]: for each RowGroup its density, carry and phase (see `rows_wanted`)."""


def output_name(value: str, statistic: Statistic) -> str:
    """Return the name of the extra graph output that carries a statistic of a value."""
    return f"qcompile.observe/{statistic}/{value}"


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """Values that have the same positions, so that one choice of rows serves all of them.

    Attributes:
        values: names of the values.
        count: name of the extra graph output, an int64 scalar: number of valid positions in this run.
    """

    values: tuple[str, ...]
    count: str


@dataclasses.dataclass
class Observation(Result):
    """Result of an instrumentation pass; row i of SAMPLING_INPUT belongs to groups[i]."""

    groups: tuple[RowGroup, ...] = ()


class Instrument(Protocol):
    """Makes the pass that writes observers into a model, e.g. the class `passes.observe_channels.ObserveChannels`."""

    def __call__(
        self, axes: Mapping[str, int], *, rows: int, gram: Collection[str], masks: tuple[PaddingMask, ...]
    ) -> ir.passes.InPlacePass:
        """Return a pass whose result is an Observation.

        Args:
            axes: value name -> channel axis.
            rows: most rows of a value that one run returns.
            gram: names of the values whose sum of x xT is asked for.
            masks: padding masks of the model.
        """
        ...
