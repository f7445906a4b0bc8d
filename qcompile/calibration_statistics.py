"""What calibration saw of one value, and how it adds up over runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """What calibration saw of one value, per channel, at every valid (not padded) position of every sample.

    Attributes:
        minimum: float32 [channels].
        maximum: float32 [channels].
        mean: float32 [channels].
        rows: float32 [rows, channels]: the value at positions drawn evenly and reproducibly from all data.
        count: number of valid positions.
        gram: float32 [channels, channels], the mean of x xT, where it was asked for.
    """

    minimum: npt.NDArray[np.float32]
    maximum: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    rows: npt.NDArray[np.float32]
    count: int
    gram: npt.NDArray[np.float32] | None = None

    @property
    def absmax(self) -> npt.NDArray[np.float32]:
        """Largest magnitude of each channel, float32 [channels]."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))


class RunningStatistics:
    """Minimum, maximum, sum and sum of x xT of one value over runs of the model.

    Sums are float64, but for x xT: of many values those of all pairs of channels are most of what calibration holds.
    """

    def __init__(self) -> None:
        self._minimum: Array = np.full((), np.inf, np.float32)
        self._maximum: Array = np.full((), -np.inf, np.float32)
        self._sum: Array = np.zeros(())
        self._gram: Array | None = None

    def add(self, minimum: Array, maximum: Array, total: Array, gram: Array | None) -> None:
        """Take the results of one run, float32 [channels], and [channels, channels] for gram."""
        self._minimum = np.minimum(self._minimum, minimum)
        self._maximum = np.maximum(self._maximum, maximum)
        self._sum = self._sum + total
        if gram is not None:
            self._gram = np.array(gram, np.float32) if self._gram is None else np.add(self._gram, gram, out=self._gram)

    def finish(self, rows: npt.NDArray[np.float32], count: int) -> ChannelStatistics:
        """Return the statistics over `count` positions; the means of none are NaN."""
        with np.errstate(invalid="ignore"):
            mean = (self._sum / count).astype(np.float32)
            gram = None if self._gram is None else np.divide(self._gram, count, out=self._gram)
        self._gram = None  # given away
        return ChannelStatistics(self._minimum, self._maximum, mean, rows, count, gram)
