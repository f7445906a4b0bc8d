"""Draws rows evenly from a stream of unknown length, in bounded memory, the same ones each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN_RATIO = 0.6180339887498949


def stratified(total: int, wanted: int, phase: float) -> npt.NDArray[np.int64]:
    """Return `wanted` of `total` indices, wanted <= total: one in each of `wanted` parts that differ by one at most.

    The place in part i is the fraction of i * golden ratio + phase, so that no period of the data is met in step.
    Instrumented models choose their rows by the same arithmetic (`calibration_observers`).
    """
    bounds = np.arange(wanted + 1) * total // max(wanted, 1)
    widths = np.diff(bounds)
    steps = np.arange(wanted, dtype=np.float32) * np.float32(GOLDEN_RATIO) + np.float32(phase)
    places = np.floor((steps - np.floor(steps)) * widths.astype(np.float32)).astype(np.int64)
    chosen: npt.NDArray[np.int64] = bounds[:-1] + np.minimum(places, widths - 1)
    return chosen


class RowReservoir:
    """The rows kept of values that have the same positions.

    A share `density` of all positions is kept; each time the rows grow over their bound, it is halved, and so
    are the rows kept until then. What remains is spread evenly over all data seen, whatever its length.
    """

    def __init__(self, values: tuple[str, ...], max_rows: int, seed: int) -> None:
        self.count = 0
        self._density = 1.0
        self._kept: dict[str, list[npt.NDArray[Any]]] = {value: [] for value in values}
        self._held = 0
        self._max_rows = max_rows
        self._random = np.random.default_rng(seed)

    def wanted(self) -> tuple[float, float, float]:
        """Return density, carry and phase for the next run: of n positions, floor(n * density + carry) rows."""
        return self._density, (self.count * self._density) % 1.0, float(self._random.random())

    def add(self, count: int, rows: dict[str, npt.NDArray[Any]]) -> None:
        """Take the rows that a run over `count` positions returned, value name -> float32 [rows, channels]."""
        returned = len(next(iter(rows.values())))
        self.count += count
        keep = np.arange(self._held + returned)
        if returned == self._max_rows and returned < count * self._density:
            keep = keep[self._thinned(returned / count, self._held, returned)]
        while len(keep) > self._max_rows:
            keep = keep[self._thinned(self._density / 2, len(keep), 0)]
        for value, new in rows.items():
            kept = self._kept[value]
            if len(keep) < self._held + returned:  # one value after the other: the rows of all twice are much memory
                kept[:] = [np.concatenate([*kept, new], dtype=np.float32)[keep]]
            else:
                kept.append(np.array(new, np.float32))
        self._held = len(keep)

    def rows(self, value: str) -> npt.NDArray[np.float32]:
        """Return the kept rows of a value, float32 [rows, channels]."""
        kept = self._kept[value]
        kept[:] = [np.concatenate(kept)]  # in the place of the parts: all rows twice would be much memory
        return kept[0]

    def _thinned(self, density: float, older: int, newer: int) -> npt.NDArray[np.int64]:
        """Return which rows the new density leaves of the `older` ones, and the `newer` ones, which already have it."""
        keep = stratified(older, round(older * density / self._density), float(self._random.random()))
        self._density = density
        return np.concatenate([keep, older + np.arange(newer)])
