"""Smoothing scales: the vector s that makes x / s and s * W together easier to quantize than x and W.

Xiao et al., "SmoothQuant" (2023), equation 4, gives s_j = max|x_j|**alpha / max|W_j|**(1 - alpha); `search` looks for
a better one by the error that the quantized linears make on sampled rows. Everything is defined for zero, constant and
non-finite channels: they get a factor of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import scale_and_zero_point, value_range
from qcompile.solvers.smoothing_families import STARTS, STEPS, Family, Magnitudes, smoothing_scale

__all__ = ["Linears", "OutputError", "Score", "Smoothing", "by_alpha", "search", "smoothing_scale"]

Array = npt.NDArray[np.float32]

SEARCH_ROWS = 128
# Outputs of each linear that a scale is measured on: few for the first look, more for the decision.
FIRST_COLUMNS, SEARCH_COLUMNS = 256, 2048
FINALISTS = 4
FEWEST_ROWS, NEGLIGIBLE_SURPRISE = 4, 0.1
# A row of outputs that is smaller than this part of the mean power does not count for more than that.
SMALLEST_ROW = 1e-6


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
        for (rows / 2) / count of that. 0 for dynamic activations, whose range is that of the data itself.
        """
        return 0.0 if self.activations.dynamic else len(self.rows) / 2 / max(self.count, len(self.rows), 1)

    def halves(self) -> tuple[Linears, Linears]:
        """The even rows with their own range, and the odd rows with the range of the even ones."""
        even = self.rows[::2]
        seen = dataclasses.replace(self, rows=even, minimum=even.min(axis=0), maximum=even.max(axis=0))
        return seen, dataclasses.replace(seen, rows=self.rows[1::2])

    def tied(self, per_channel: Array) -> Array:
        """Largest finite value among the channels that share a factor, for each channel."""
        largest = np.zeros(int(self.groups.max(initial=0)) + 1, np.float32)
        np.maximum.at(largest, self.groups, np.where(np.isfinite(per_channel), per_channel, 0))
        return largest[self.groups]

    def absmax(self) -> tuple[Array, Array]:
        """Largest magnitude of each channel of the value, and of each weight row over all linears."""
        rows = [np.abs(weight).max(axis=1, initial=0) for weight in self.weights]
        return self.tied(np.maximum(np.abs(self.minimum), np.abs(self.maximum))), self.tied(np.max(rows, axis=0))

    def magnitudes(self) -> Magnitudes:
        """Both measures of the channels and of the weight rows."""
        return Magnitudes(self.absmax(), self.root_mean_square())

    def root_mean_square(self) -> tuple[Array, Array]:
        """Typical magnitude of each channel of the value, and of each weight row over all linears."""
        rows = np.sum([np.square(_finite(weight)).mean(axis=1) for weight in self.weights], axis=0)
        return self.tied(np.sqrt(np.square(_finite(self.rows)).mean(axis=0))), self.tied(np.sqrt(rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Smoothing:
    """A scale and what it does.

    Attributes:
        scale: float32 [channels].
        error: mean over linears and rows of |quantized - float|**2 / |float|**2 of the output, with the scale. Rows
            count alike: the next norm brings all tokens to one size, those with massive activations too.
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

    On at most SEARCH_ROWS rows and `columns` outputs of each linear, spread evenly.
    """

    def __init__(self, linears: Linears, columns: int = SEARCH_COLUMNS) -> None:
        step = max(1, len(linears.rows) // SEARCH_ROWS)
        self._linears = linears
        self._minimum, self._maximum = _finite(linears.minimum), _finite(linears.maximum)
        self._rows = _finite(linears.rows[::step][:SEARCH_ROWS])
        sampled = [_finite(weight[:, :: -(-weight.shape[1] // columns)]) for weight in linears.weights]
        sizes = [weight.shape[1] for weight in sampled]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._owner = np.repeat(np.arange(len(sizes)), sizes)
        self._weight = np.concatenate(sampled, axis=1)
        self._row_minimum = np.stack([_finite(weight.min(axis=1)) for weight in linears.weights])
        self._row_maximum = np.stack([_finite(weight.max(axis=1)) for weight in linears.weights])
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
        return _round_trip(rows, low, high, scheme)

    def _quantize_weight(self, scale: Array) -> Array:
        scheme = self._linears.weight_scheme
        weight = self._weight * scale[:, None]
        if scheme.granularity == "per_tensor":
            low = (self._row_minimum * scale).min(axis=1)[self._owner]
            high = (self._row_maximum * scale).max(axis=1)[self._owner]
        else:
            low, high = weight.min(axis=0), weight.max(axis=0)
        return _round_trip(weight, low, high, scheme)


def _finite(array: Array) -> Array:
    return np.nan_to_num(np.asarray(array, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _round_trip(array: Array, low: Array, high: Array, scheme: Scheme) -> Array:
    """Quantize and dequantize in place, in float only: the search does it hundreds of times."""
    step, zero_point = scale_and_zero_point(low, high, scheme)
    smallest, largest = (np.float32(end) - zero_point.astype(np.float32) for end in scheme.range)
    array /= step
    np.rint(array, out=array)
    np.clip(array, smallest, largest, out=array)
    array *= step
    return array


def by_alpha(linears: Linears, alpha: float) -> Smoothing:
    """Return the scale of equation 4 of SmoothQuant with its error and that of no smoothing."""
    error = OutputError(linears)
    absmax_x, absmax_w = linears.absmax()
    scale = smoothing_scale(absmax_x, absmax_w, alpha)
    return Smoothing(scale, error(scale), error(np.ones_like(scale)))


class Score:
    """Output error of a family of scales, with what saturation on data not seen yet adds to it.

    On few calibration data a scale that brings every channel to one range fits the channels' largest magnitudes there,
    and new data saturate. That is measured: the scale of one half of the rows on the other half. With thousands of
    positions it is negligible, and left out.
    """

    def __init__(self, linears: Linears, columns: int = SEARCH_COLUMNS) -> None:
        self._error = OutputError(linears, columns)
        self._magnitudes = linears.magnitudes()
        self._surprise = linears.surprise if len(linears.rows) >= FEWEST_ROWS else 0.0
        if self._surprise >= NEGLIGIBLE_SURPRISE:
            seen, unseen = linears.halves()
            self._seen_magnitudes = seen.magnitudes()
            self._seen, self._unseen = OutputError(seen, columns), OutputError(unseen, columns)

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


def search(linears: Linears) -> Smoothing:
    """Return the scale with the smallest score among about fifty; never worse than a scale of 1.

    A coarse set of families is ranked on few outputs; the best of its first four on many outputs is then improved by
    coordinate descent over the parameters.
    """
    score, first = Score(linears), Score(linears, FIRST_COLUMNS)
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
