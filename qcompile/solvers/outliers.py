"""Which input channels of linears to multiply in float: those whose magnitude makes 8 bits coarse for all others.

Dettmers et al., "LLM.int8()" (2022), section 3.2, takes every channel with a magnitude beyond 6 (`beyond`). `search`
takes the channels that pay: those for which the root mean square error of the output, times the square of the time, is
least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import dequantize, quantize_weight
from qcompile.solvers.sqnr import as_quantized, powers

Array = npt.NDArray[Any]

ROWS, COLUMNS = 128, 1024
"""Most rows, and outputs of each linear, that an error is measured on."""

FLOAT_INPUT = 3.0
"""Time of one more float input, in those of an int8 input."""
BRANCH_INPUTS = 150.0
"""Time of the float product without inputs, in those of an int8 input: it masks, gathers, and adds up outputs.

Both are about the median of linears of 384x1152, 1536x384 and 1536x1536 for 16 and 128 tokens with up to 96 outliers,
on ONNX Runtime 1.31 and OpenVINO 2026.4, AVX512-VNNI, 2 cores: 1.5 to 7.6 for an input, 43 to 500 for a branch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Linears that read one value, and how they are quantized.

    Attributes:
        rows: float32 [rows, channels], samples of the value.
        minimum: [channels] smallest value seen in all data, finite.
        maximum: [channels] largest value seen in all data, finite.
        weights: of each linear, float32 [channels, outputs].
        activations: how the value is quantized.
        weight_scheme: how the weights are quantized.
        most: most channels to take out.
    """

    rows: Array
    minimum: Array
    maximum: Array
    weights: Sequence[Array]
    activations: Scheme
    weight_scheme: Scheme
    most: int

    @property
    def magnitudes(self) -> Array:
        """The largest seen of each channel, [channels]."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def error(self, channels: Array) -> float:
        """Squared error of the outputs over their power, on average over the linears, with these channels in float."""
        rows = _spread(self.rows, ROWS, axis=0)
        inliers = np.ones(len(self.maximum), np.float32)
        inliers[channels] = 0
        masked = rows * inliers
        low, high = np.min(self.minimum * inliers, initial=0), np.max(self.maximum * inliers, initial=0)
        noisy = as_quantized(masked, (float(low), float(high)), self.activations)
        errors = []
        for weight in self.weights:
            some = _spread(weight, COLUMNS, axis=1)
            kept = some * inliers[:, None]
            power = powers(rows @ some, np.zeros((), np.float32))[0]
            stored = dequantize(*quantize_weight(kept, self.weight_scheme, 1), axis=1)
            noise = powers(masked @ kept, noisy @ stored)[1]
            errors.append(noise / power if power else 0.0)
        return float(np.mean(errors)) if errors else 0.0

    def time(self, count: int) -> float:
        """Time of a linear with so many channels in float, relative to that with none."""
        return 1 + (BRANCH_INPUTS + FLOAT_INPUT * count) / len(self.maximum) if count else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Channels that are multiplied in float, and what that does.

    Attributes:
        channels: int64 [outliers], ascending.
        error: squared error of the outputs relative to their power, see `Problem.error`.
        error_without: the same with no channel in float.
    """

    channels: npt.NDArray[np.int64]
    error: float
    error_without: float


def beyond(magnitudes: Array, threshold: float) -> npt.NDArray[np.int64]:
    """Return the channels, ascending, whose magnitude exceeds a threshold: section 3.2 of the paper."""
    return np.flatnonzero(np.asarray(magnitudes) > threshold)


def search(problem: Problem) -> Split:
    """Return the channels that pay, the largest magnitudes first.

    The error has to fall by more than twice the share by which the time rises, so it is never larger than without. By
    the share itself, MiniLM takes 23% more time than without outliers in float, not 16%, for .00021 instead of .00025
    of error (1 - cosine, ONNX Runtime, planted outliers). None are taken where the outputs are zero.
    """
    order = np.argsort(problem.magnitudes, kind="stable")[::-1]
    without = problem.error(order[:0])
    best, least, error = order[:0], np.sqrt(without), without
    for count in _counts(min(problem.most, len(order))):
        found = problem.error(order[:count])
        price = np.sqrt(found) * problem.time(count) ** 2
        if price < least:
            best, least, error = order[:count], price, found
    return Split(np.sort(best), error, without)


def _counts(most: int) -> Iterator[int]:
    """1 to 8, then half as many more each time, up to most."""
    count = 1
    while count <= most:
        yield count
        count += count // 2 if count >= 8 else 1


def _spread(array: Array, most: int, axis: int) -> Array:
    """At most so many of an axis, from the first to the last."""
    size = array.shape[axis]
    places = np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64)) if size else np.arange(0)
    return np.take(array, places, axis=axis) if size > most else array
