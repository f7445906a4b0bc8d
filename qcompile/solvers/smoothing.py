"""Smoothing scales: the vector s that makes x / s and s * W together easier to quantize than x and W.

Xiao et al., "SmoothQuant" (2023), equation 4, gives s_j = max|x_j|**alpha / max|W_j|**(1 - alpha); `search` looks for
a better one by the error that the quantized linears make on sampled rows. Everything is defined for zero, constant and
non-finite channels: they get a factor of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import scale_and_zero_point, value_range
from qcompile.solvers.smoothing_families import STARTS, STEPS, Family, Magnitudes, largest_tied, smoothing_scale

__all__ = [
    "Linears",
    "OutputError",
    "Problem",
    "Score",
    "Smoothing",
    "by_alpha",
    "search",
    "smoothing_scale",
]

Array = npt.NDArray[np.float32]

SEARCH_ROWS = 128
# Outputs of each linear that a scale is measured on: few for the first look, more for the decision.
FIRST_COLUMNS, SEARCH_COLUMNS = 256, 2048
FINALISTS = 4
FEWEST_ROWS, NEGLIGIBLE_SURPRISE = 4, 0.1
# A row of outputs that is smaller than this part of the mean power does not count for more than that.
SMALLEST_ROW = 1e-6


class Problem(Protocol):
    """Layers whose inputs are scaled by one vector, and what quantization does to their outputs."""

    @property
    def surprise(self) -> float:
        """How much half of the rows underestimates what new data do to the range; 0 where that cannot be told."""

    def magnitudes(self) -> Magnitudes:
        """Both measures of the channels and of the weight rows."""

    def halves(self) -> tuple[Problem, Problem]:
        """The even rows with their own range, and the odd rows with the range of the even ones."""

    def error(self, columns: int) -> Callable[[Array], float]:
        """Return what measures the error of a scale, on about so many outputs of each layer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linears:
    """Linears that read one value, with all that is needed to measure what quantization does to their outputs.

    Attributes:
        rows: float32 [rows, channels], samples of the value.
        minimum: [channels] smallest value seen in all data.
        maximum: [channels] largest value seen in all data.
        weights: of each linear, float32 [channels, out_features].
        activations: how the value will be quantized.
        weight_scheme: how the weights will be quantized.
        groups: int [channels]; channels of one group have one factor.
        count: positions in all data that minimum and maximum are of; at least the rows.
    """

    rows: Array
    minimum: Array
    maximum: Array
    weights: Sequence[Array]
    activations: Scheme
    weight_scheme: Scheme
    groups: npt.NDArray[np.int64]
    count: int = 0

    @property
    def surprise(self) -> float:
        """How much half of the rows underestimates what data not seen yet will do to the range, as seen from all data.

        With n positions a channel exceeds its largest magnitude at one new position in about n: half of the rows stand
        for (rows / 2) / count of that. 0 for dynamic activations, whose range is that of the data itself, and where
        half of the rows is next to none.
        """
        if self.activations.dynamic or len(self.rows) < FEWEST_ROWS:
            return 0.0
        return len(self.rows) / 2 / max(self.count, len(self.rows))

    def halves(self) -> tuple[Linears, Linears]:
        """The even rows with their own range, and the odd rows with the range of the even ones."""
        even = self.rows[::2]
        seen = dataclasses.replace(self, rows=even, minimum=even.min(axis=0), maximum=even.max(axis=0))
        return seen, dataclasses.replace(seen, rows=self.rows[1::2])

    def error(self, columns: int) -> OutputError:
        """Return what measures the error of a scale, on at most so many outputs of each linear."""
        return OutputError(self, columns)

    def tied(self, per_channel: Array) -> Array:
        """Largest finite value among the channels that share a factor, for each channel."""
        return largest_tied(per_channel, self.groups)

    def absmax(self) -> tuple[Array, Array]:
        """Largest magnitude of each channel of the value, and of each weight row over all linears."""
        rows = [np.abs(weight).max(axis=1, initial=0) for weight in self.weights]
        return self.tied(np.maximum(np.abs(self.minimum), np.abs(self.maximum))), self.tied(np.max(rows, axis=0))

    def magnitudes(self) -> Magnitudes:
        """Both measures of the channels and of the weight rows."""
        return Magnitudes(self.absmax(), self.root_mean_square())

    def root_mean_square(self) -> tuple[Array, Array]:
        """Typical magnitude of each channel of the value, and of each weight row over all linears."""
        rows = np.sum([np.square(finite(weight)).mean(axis=1) for weight in self.weights], axis=0)
        return self.tied(np.sqrt(np.square(finite(self.rows)).mean(axis=0))), self.tied(np.sqrt(rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Smoothing:
    """A scale and what it does.

    Attributes:
        scale: float32 [channels].
        error: squared error of the outputs relative to their power, as the problem measures it, with the scale.
        error_without: the same with a scale of 1.
    """

    scale: Array
    error: float
    error_without: float

    @property
    def gain(self) -> float:
        """Part of the error that the scale removes, at most 1; negative when it adds some."""
        return 1 - self.error / self.error_without if self.error_without > 0 else 0.0


class OutputError:
    """Measures the output error of quantized linears for any scale of their input.

    The mean over linears and rows of |quantized - float|**2 / |float|**2 of the output. Rows count alike: the next norm
    brings all tokens to one size, those with massive activations too. On at most SEARCH_ROWS rows and `columns` outputs
    of each linear, spread evenly.
    """

    def __init__(self, linears: Linears, columns: int = SEARCH_COLUMNS) -> None:
        step = max(1, len(linears.rows) // SEARCH_ROWS)
        self._linears = linears
        self._minimum, self._maximum = finite(linears.minimum), finite(linears.maximum)
        self._rows = finite(linears.rows[::step][:SEARCH_ROWS])
        sampled = [finite(weight[:, :: -(-weight.shape[1] // columns)]) for weight in linears.weights]
        sizes = [weight.shape[1] for weight in sampled]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._owner = np.repeat(np.arange(len(sizes)), sizes)
        self._weight = np.concatenate(sampled, axis=1)
        self._row_minimum = np.stack([finite(weight.min(axis=1)) for weight in linears.weights])
        self._row_maximum = np.stack([finite(weight.max(axis=1)) for weight in linears.weights])
        self._expected = self._rows @ self._weight
        power = np.add.reduceat(np.square(self._expected), self._starts, axis=1)
        floor = np.maximum(power, SMALLEST_ROW * power.mean(axis=0))
        self._importance = 1 / (np.where(floor > 0, floor, 1) * power.size)

    def __call__(self, scale: Array) -> float:
        """Return the mean relative squared error of the outputs when x / scale and scale * W are quantized."""
        rows = self._quantize_rows(self._rows / scale, scale)
        outputs = rows @ self._quantize_weight(scale)
        outputs -= self._expected
        np.square(outputs, out=outputs)
        return float(np.vdot(np.add.reduceat(outputs, self._starts, axis=1), self._importance))

    def _quantize_rows(self, rows: Array, scale: Array) -> Array:
        scheme = self._linears.activations
        if scheme.dynamic or scheme.granularity == "per_token":
            low, high = value_range(rows, scheme)
        else:
            low, high = (self._minimum / scale).min(initial=0), (self._maximum / scale).max(initial=0)
        return round_trip(rows, low, high, scheme)

    def _quantize_weight(self, scale: Array) -> Array:
        scheme = self._linears.weight_scheme
        weight = self._weight * scale[:, None]
        if scheme.granularity == "per_tensor":
            low = (self._row_minimum * scale).min(axis=1)[self._owner]
            high = (self._row_maximum * scale).max(axis=1)[self._owner]
        else:
            low, high = weight.min(axis=0), weight.max(axis=0)
        return round_trip(weight, low, high, scheme)


def finite(array: Array) -> Array:
    """Return float32 with zero in the place of what is not finite."""
    return np.nan_to_num(np.asarray(array, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def round_trip(array: Array, low: Array, high: Array, scheme: Scheme) -> Array:
    """Quantize and dequantize in place, in float only: the search does it hundreds of times."""
    step, zero_point = scale_and_zero_point(low, high, scheme)
    smallest, largest = (np.float32(end) - zero_point.astype(np.float32) for end in scheme.range)
    array /= step
    np.rint(array, out=array)
    np.clip(array, smallest, largest, out=array)
    array *= step
    return array


def by_alpha(problem: Problem, alpha: float) -> Smoothing:
    """Return the scale of equation 4 of SmoothQuant with its error and that of no smoothing."""
    with np.errstate(over="ignore", invalid="ignore"):  # see `search`
        error = problem.error(SEARCH_COLUMNS)
        scale = smoothing_scale(*problem.magnitudes().absmax, alpha)
        return Smoothing(scale, error(scale), error(np.ones_like(scale)))


class Score:
    """Output error of a family of scales, with what saturation on data not seen yet adds to it.

    On few calibration data a scale that brings every channel to one range fits the channels' largest magnitudes there,
    and new data saturate. That is measured: the scale of one half of the rows on the other half. With thousands of
    positions it is negligible, and left out.
    """

    def __init__(self, problem: Problem, columns: int = SEARCH_COLUMNS) -> None:
        self._error = problem.error(columns)
        self._magnitudes = problem.magnitudes()
        self._surprise = problem.surprise
        if self._surprise >= NEGLIGIBLE_SURPRISE:
            seen, unseen = problem.halves()
            self._seen_magnitudes = seen.magnitudes()
            self._seen, self._unseen = seen.error(columns), unseen.error(columns)

    def __call__(self, family: Family | None) -> float:
        """Return the score of a family, or of no smoothing."""
        error = self._error(self.scale(family))
        if self._surprise < NEGLIGIBLE_SURPRISE:
            return error
        scale = self.scale(family, self._seen_magnitudes)
        return error + self._surprise * max(0.0, self._unseen(scale) - self._seen(scale))

    def scale(self, family: Family | None, magnitudes: Magnitudes | None = None) -> Array:
        """Return the scale of a family on all data; ones for no smoothing."""
        found = magnitudes or self._magnitudes
        return np.ones_like(found.absmax[0]) if family is None else family.scale(found)


def search(problem: Problem) -> Smoothing:
    """Return the scale with the smallest score among about fifty; never worse than a scale of 1.

    A coarse set of families is ranked on few outputs; the best of its first four on many outputs is then improved by
    coordinate descent over the parameters. It is 1 where the outputs are too large to be squared.
    """
    # Squares of outputs beyond 1e19 are no float32. An error that is infinite or NaN is never better than that of a
    # scale of 1: there is nothing to warn of.
    with np.errstate(over="ignore", invalid="ignore"):
        return _search(problem)


def _search(problem: Problem) -> Smoothing:
    score, first = Score(problem), Score(problem, FIRST_COLUMNS)
    without = score(None)
    finalists = sorted(STARTS, key=first)[:FINALISTS]
    scores = {family: score(family) for family in finalists}
    best = min(scores, key=scores.__getitem__)
    for step in STEPS:
        for family in best.neighbours(step):
            if family not in scores:
                scores[family] = score(family)
        best = min(scores, key=scores.__getitem__)
    if not scores[best] < without:
        return Smoothing(score.scale(None), without, without)
    return Smoothing(score.scale(best), scores[best], without)
