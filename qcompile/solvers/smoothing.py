"""Smoothing scales: the vector s that makes x / s and s * W together easier to quantize than x and W.

Xiao et al., "SmoothQuant" (2023), equation 4, gives s_j = max|x_j|**alpha / max|W_j|**(1 - alpha); `search` looks for
a better one by the error that the quantized linears make on sampled rows. Everything is defined for zero, constant and
non-finite channels: they get a factor of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import scale_and_zero_point, value_range

Array = npt.NDArray[np.float32]

LARGEST_FACTOR = 1e5
SEARCH_ROWS = 128
# Outputs of each linear that a scale is measured on: few for the first look, more for the decision.
FIRST_COLUMNS, SEARCH_COLUMNS = 256, 2048
FINALISTS = 4
# A row of outputs that is smaller than this part of the mean power does not count for more than that.
SMALLEST_ROW = 1e-6


def smoothing_scale(absmax_x: Array, absmax_w: Array, alpha: float, beta: float | None = None) -> Array:
    """Return s_j = absmax_x_j**alpha / absmax_w_j**beta, equation 4 of SmoothQuant with beta = 1 - alpha.

    Channels whose magnitudes are zero or not finite get 1. The result is finite, within 1e-5 and 1e5.

    Args:
        absmax_x: [channels] largest magnitude of each input channel.
        absmax_w: [channels] largest magnitude of each weight row, over all linears that read the value.
        alpha: how much of the range of x goes into the weights, 0 to 1.
        beta: exponent of the weights; None for 1 - alpha.
    """
    x, w = np.asarray(absmax_x, np.float64), np.asarray(absmax_w, np.float64)
    usable = np.isfinite(x) & np.isfinite(w) & (x > 0) & (w > 0)
    x, w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    scale = np.exp(alpha * np.log(x) - (1 - alpha if beta is None else beta) * np.log(w))
    return np.clip(scale, 1 / LARGEST_FACTOR, LARGEST_FACTOR).astype(np.float32)


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
    """

    rows: Array
    minimum: Array
    maximum: Array
    weights: Sequence[Array]
    activations: Scheme
    weight_scheme: Scheme
    groups: npt.NDArray[np.int64]

    def tied(self, per_channel: Array) -> Array:
        """Largest finite value among the channels that share a factor, for each channel."""
        largest = np.zeros(int(self.groups.max(initial=0)) + 1, np.float32)
        np.maximum.at(largest, self.groups, np.where(np.isfinite(per_channel), per_channel, 0))
        return largest[self.groups]

    def absmax(self) -> tuple[Array, Array]:
        """Largest magnitude of each channel of the value, and of each weight row over all linears."""
        rows = [np.abs(weight).max(axis=1, initial=0) for weight in self.weights]
        return self.tied(np.maximum(np.abs(self.minimum), np.abs(self.maximum))), self.tied(np.max(rows, axis=0))

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


@dataclasses.dataclass(frozen=True)
class Family:
    """s_j = max(x_j**alpha / w_j**beta, absmax_x_j / threshold), up to a factor common to all channels.

    With beta = 1 - alpha and limit = 1 it is equation 4 of SmoothQuant; with alpha = beta = 0 it divides only what is
    beyond a threshold, as Outlier Suppression+ (Wei et al. 2023, section 4.2). alpha = beta = 1/2 on root mean squares
    is the optimum where the noise of all activations is alike, and that of all weights.

    Attributes:
        typical: x and w are root mean squares of the channels instead of their largest magnitudes.
        alpha: exponent of x.
        beta: exponent of w.
        limit: threshold, as part of the range that the first term alone would leave; 0 to 1.
    """

    typical: bool
    alpha: float
    beta: float
    limit: float

    def scale(self, magnitudes: Magnitudes) -> Array:
        """Return the scale, float32 [channels], finite, with a geometric mean near 1."""
        absmax_x, _ = magnitudes.absmax
        x, w = magnitudes.typical if self.typical else magnitudes.absmax
        usable = (x > 0) & (w > 0) & (absmax_x > 0)
        first = smoothing_scale(np.where(usable, x, 1), np.where(usable, w, 1), self.alpha, self.beta)
        first /= np.exp(np.log(first).mean())
        threshold = (absmax_x / first).max(initial=0) * self.limit
        second = absmax_x / threshold if threshold > 0 else absmax_x
        scale = np.clip(np.maximum(first, second), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        return np.where(usable, scale, 1).astype(np.float32)

    def neighbours(self, step: float) -> Iterator[Family]:
        """Families next to this one, one parameter changed."""
        for change in (step, -step):
            yield dataclasses.replace(self, alpha=self.alpha + change)
            yield dataclasses.replace(self, beta=self.beta + change)
            yield dataclasses.replace(self, limit=min(1.0, self.limit * np.exp(3 * change)))


@dataclasses.dataclass(frozen=True, eq=False)
class Magnitudes:
    """Magnitudes of the channels of x and of the rows of W, in two measures.

    Attributes:
        absmax: largest magnitudes.
        typical: root mean squares.
    """

    absmax: tuple[Array, Array]
    typical: tuple[Array, Array]


STARTS = tuple(
    Family(typical, alpha, beta, limit)
    for typical in (True, False)
    for alpha, beta in ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.5, 0.0), (0.6, 0.4), (0.75, 0.25), (0.9, 0.1))
    for limit in ((1.0, 0.5, 0.25, 0.12, 0.06) if alpha <= 0.5 else (1.0,))
    if alpha > 0 or (typical and limit < 1)
)
STEPS = (0.15, 0.08, 0.04)


def search(linears: Linears) -> Smoothing:
    """Return the scale with the smallest output error among about fifty; never worse than a scale of 1.

    A coarse set of families is ranked on few outputs; the best of its first four on many outputs is then improved by
    coordinate descent over the parameters.
    """
    error = OutputError(linears)
    magnitudes = Magnitudes(linears.absmax(), linears.root_mean_square())
    ones = np.ones(len(linears.groups), np.float32)
    without = error(ones)
    first = OutputError(linears, FIRST_COLUMNS)
    finalists = sorted(STARTS, key=lambda family: first(family.scale(magnitudes)))[:FINALISTS]
    errors = {family: error(family.scale(magnitudes)) for family in finalists}
    best = min(errors, key=errors.__getitem__)
    for step in STEPS:
        for family in best.neighbours(step):
            if family not in errors:
                errors[family] = error(family.scale(magnitudes))
        best = min(errors, key=errors.__getitem__)
    if not errors[best] < without:
        return Smoothing(ones, without, without)
    return Smoothing(best.scale(magnitudes), errors[best], without)
