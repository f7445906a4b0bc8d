"""Smoothing of convolutions: one vector of factors for the input channels of one or several values.

Where convolutions in front take up the factors it is cross-layer equalization (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", 2019, section 4.1) with a scale that is found on data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import value_range
from qcompile.solvers.smoothing import FEWEST_ROWS, SEARCH_ROWS, finite, round_trip
from qcompile.solvers.smoothing_families import Magnitudes, largest_tied

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A value and the layers that read it.

    Attributes:
        rows: float32 [rows, channels], samples of the value.
        minimum: [channels] smallest value seen in all data.
        maximum: [channels] largest value seen in all data.
        count: positions in all data that minimum and maximum are of.
        kernels: weight of each layer, float32 [groups, channels / groups, outputs / groups, taps]; a linear has one
            group and one tap.
    """

    rows: Array
    minimum: Array
    maximum: Array
    count: int
    kernels: Sequence[Array]

    def halves(self) -> tuple[Reading, Reading]:
        """The even rows with their own range, and the odd rows with the range of the even ones."""
        even = self.rows[::2]
        seen = dataclasses.replace(self, rows=even, minimum=even.min(axis=0), maximum=even.max(axis=0))
        return seen, dataclasses.replace(seen, rows=self.rows[1::2])

    def magnitudes(self, *, relative: bool) -> tuple[Array, Array, Array, Array]:
        """Largest and typical magnitude of each channel of the value, and of what the kernels hold for it.

        Args:
            relative: as parts of the largest of all channels, and of all that a kernel holds.
        """
        absmax = finite(np.maximum(np.abs(self.minimum), np.abs(self.maximum)))
        typical = np.sqrt(np.square(finite(self.rows)).mean(axis=0))
        largest = [np.abs(finite(kernel)).max(axis=(2, 3)).ravel() for kernel in self.kernels]
        power = [np.square(finite(kernel)).mean(axis=(2, 3)).ravel() for kernel in self.kernels]
        sizes = [float(part.max(initial=0)) or 1.0 if relative else 1.0 for part in (absmax, *largest)]
        weights = np.max([part / size for part, size in zip(largest, sizes[1:], strict=True)], axis=0)
        squares = np.sum([part / size**2 for part, size in zip(power, sizes[1:], strict=True)], axis=0)
        return absmax / sizes[0], weights, typical / sizes[0], np.sqrt(squares)


@dataclasses.dataclass(frozen=True, eq=False)
class Convolutions:
    """Values that are scaled together, as those of a residual stream are, with the layers that read them.

    The error is measured on what single positions of an input contribute to the outputs, through every tap: summed up,
    rounding errors of neighbouring positions add as independent noise does, so that the ratio between two scales stays.
    No patches are needed, whose size is that of the kernel. It is the mean over layers of the squared error of the
    contributions relative to their power, with the whole range of each value: percentiles of the rows
    kept are too coarse to choose by.

    Attributes:
        readings: the values, with the same channels.
        activations: how they will be quantized.
        weight_scheme: how the weights will be quantized; a scale "per_channel" is one for an output of a group.
        groups: int [channels]; channels of one group have one factor.
    """

    readings: Sequence[Reading]
    activations: Scheme
    weight_scheme: Scheme
    groups: npt.NDArray[np.int64]

    @property
    def surprise(self) -> float:
        """How much half of the rows underestimates what new data do to the range; see `smoothing.Linears`."""
        if self.activations.dynamic or any(len(reading.rows) < FEWEST_ROWS for reading in self.readings):
            return 0.0
        return max(len(reading.rows) / 2 / max(reading.count, len(reading.rows)) for reading in self.readings)

    def magnitudes(self) -> Magnitudes:
        """Both measures of the channels and of the weights, the largest among the values.

        Of several values each counts by its own range, which is what its quantization error depends on.
        """
        found = [reading.magnitudes(relative=len(self.readings) > 1) for reading in self.readings]
        x, w, typical_x, typical_w = (
            largest_tied(np.max(part, axis=0), self.groups) for part in zip(*found, strict=True)
        )
        return Magnitudes((x, w), (typical_x, typical_w))

    def halves(self) -> tuple[Convolutions, Convolutions]:
        """The even rows with their own range, and the odd rows with the range of the even ones."""
        seen, unseen = zip(*(reading.halves() for reading in self.readings), strict=True)
        return dataclasses.replace(self, readings=seen), dataclasses.replace(self, readings=unseen)

    def error(self, columns: int) -> ContributionError:
        """Return what measures the error of a scale, on about so many outputs and taps of each layer."""
        return ContributionError(self, columns)


class ContributionError:
    """Measures the error of what input positions contribute to quantized layers, for any scale of the channels.

    On at most SEARCH_ROWS positions of each value, and some outputs and groups of each layer, spread evenly.
    """

    def __init__(self, problem: Convolutions, columns: int) -> None:
        self._readings = [_Sampled(reading, columns) for reading in problem.readings]
        self._problem = problem

    def __call__(self, scale: Array) -> float:
        """Return the mean relative squared error when x / scale and scale * W are quantized."""
        return float(np.mean([error for reading in self._readings for error in reading.errors(scale, self._problem)]))


class _Sampled:
    """Some rows of a reading, with some columns of its kernels."""

    def __init__(self, reading: Reading, columns: int) -> None:
        step = max(1, len(reading.rows) // SEARCH_ROWS)
        self._rows = finite(reading.rows[::step][:SEARCH_ROWS])
        self._minimum, self._maximum = finite(reading.minimum), finite(reading.maximum)
        self._kernels = [_SampledKernel(finite(kernel), self._rows, columns) for kernel in reading.kernels]

    def errors(self, scale: Array, problem: Convolutions) -> list[float]:
        """Relative squared error of each layer."""
        scheme = problem.activations
        rows = self._rows / scale
        if scheme.dynamic or scheme.granularity == "per_token":
            low, high = value_range(rows, scheme)
        else:
            low, high = (self._minimum / scale).min(initial=0), (self._maximum / scale).max(initial=0)
        rows = round_trip(rows, low, high, scheme)
        return [kernel.error(rows, scale, problem.weight_scheme) for kernel in self._kernels]


class _SampledKernel:
    """Some groups and outputs of a kernel [groups, inputs, outputs, taps], and what rows contribute to them exactly."""

    def __init__(self, kernel: Array, rows: Array, columns: int) -> None:
        groups, inputs, outputs, taps = kernel.shape
        self._shape = groups, inputs
        self._minimum, self._maximum = (end(kernel, axis=(2, 3)) for end in (np.min, np.max))
        kernel = kernel[:, :, :: -(-outputs * taps // columns) or 1]
        self._groups = slice(None, None, groups * kernel.shape[2] * taps // columns or 1)
        self._kernel = np.ascontiguousarray(kernel[self._groups])
        self._expected = self._contributions(rows, self._kernel)
        self._power = float(np.square(self._expected).sum()) or 1.0

    def error(self, rows: Array, scale: Array, scheme: Scheme) -> float:
        """Squared error of the contributions of quantized rows to the quantized kernel, relative to their power."""
        factors = scale.reshape(self._shape)
        kernel = self._kernel * factors[self._groups][:, :, None, None]
        if scheme.granularity == "per_tensor":
            low, high = np.min(self._minimum * factors), np.max(self._maximum * factors)
        else:
            low, high = kernel.min(axis=(1, 3), keepdims=True), kernel.max(axis=(1, 3), keepdims=True)
        noise = self._contributions(rows, round_trip(kernel, low, high, scheme)) - self._expected
        return float(np.square(noise, out=noise).sum()) / self._power

    def _contributions(self, rows: Array, kernel: Array) -> Array:
        """Products [groups, rows, outputs * taps]."""
        parts = rows.reshape(len(rows), *self._shape)[:, self._groups].transpose(1, 0, 2)
        product: Array = parts @ kernel.reshape(*kernel.shape[:2], -1)
        return product
