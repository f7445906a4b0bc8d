"""Keeps the activation ranges that calibration sees, before and after smoothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qcompile import layers
from qcompile.calibration import ChannelStatistics
from qcompile.report.data import ActivationRange


class Ranges:
    """Listens to a Calibrator: the first range of a layer's input is that of the float model, the last is final.

    Ranges of unlike numbers of positions are of unlike samples, see `Calibrator.collect`: they are not compared.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], np.ndarray] = {}
        self._last: dict[tuple[int, str], np.ndarray] = {}

    def collected(self, model: ir.Model, statistics: Mapping[str, ChannelStatistics]) -> None:
        """Note the largest magnitude per channel of what each layer reads; of several of one name, the first."""
        names: set[str] = set()
        for layer in layers.float_layers(model):
            seen = statistics.get(str(layer.x.name))
            if seen is not None and layer.name not in names:
                names.add(layer.name)
                self._first.setdefault((seen.count, layer.name), seen.absmax)
                self._last[seen.count, layer.name] = seen.absmax

    def found(self) -> list[ActivationRange]:
        """Return the ranges of the layers that smoothing changed, each over as many positions as there are."""
        changed = {}
        for key in sorted(self._first, key=lambda key: key[0]):
            before, after = self._first[key], self._last[key]
            if before.shape == after.shape and not np.allclose(before, after):
                changed[key[1]] = ActivationRange.of(key[1], before, after)
        return list(changed.values())
