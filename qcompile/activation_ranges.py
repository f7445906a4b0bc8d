"""Keeps the activation ranges that calibration sees, before and after smoothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile import layers
from qcompile.calibration import ChannelStatistics
from qcompile.report.data import ActivationRange


class Ranges:
    """Listens to a Calibrator: the first range of a layer's input is that of the float model, the last is final."""

    def __init__(self) -> None:
        self._first: dict[str, np.ndarray] = {}
        self._last: dict[str, np.ndarray] = {}

    def collected(self, model: ir.Model, statistics: Mapping[str, ChannelStatistics]) -> None:
        """Note the largest magnitude per channel of what each layer reads; of several of one name, the first."""
        names: set[str] = set()
        for layer in layers.float_layers(model):
            seen = statistics.get(str(layer.x.name))
            if seen is not None and layer.name not in names:
                names.add(layer.name)
                self._first.setdefault(layer.name, seen.absmax)
                self._last[layer.name] = seen.absmax

    def found(self) -> list[ActivationRange]:
        """Return the ranges of the layers that smoothing changed."""
        pairs = ((name, before, self._last[name]) for name, before in self._first.items())
        return [
            ActivationRange.of(name, before, after)
            for name, before, after in pairs
            if before.shape == after.shape and not np.allclose(before, after)
        ]
