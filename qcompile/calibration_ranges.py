"""Which range of an activation its integers represent, from calibration statistics."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers
from qcompile.calibration_statistics import ChannelStatistics
from qcompile.layers import Layer
from qcompile.saturation import told_apart
from qcompile.scheme import Scheme
from qcompile.solvers import broken_numbers
from qcompile.solvers.affine import scale_and_zero_point
from qcompile.solvers.ranges import OBSERVERS

Observer = Literal["minmax", "percentile", "mse", "entropy"]


@dataclasses.dataclass(frozen=True)
class StaticRanges:
    """How the range of a static activation is chosen.

    Attributes:
        scheme: of the activations.
        observer: a name of `solvers.ranges.OBSERVERS`.
        convolution_observer: the same for what convolutions read and write; None: as `observer`.
    """

    scheme: Scheme
    observer: Observer
    convolution_observer: Observer | None = None

    def of(self, value: ir.Value, seen: ChannelStatistics) -> tuple[float, float]:
        """Return (low, high) of the value; what its readers do not tell apart lies outside."""
        observer = self.convolution_observer if layers.of_convolution(value) else None
        bounds = told_apart(value)
        minimum, maximum, rows = (np.clip(array, *bounds) for array in (seen.minimum, seen.maximum, seen.rows))
        return OBSERVERS[observer or self.observer](minimum, maximum, rows, self.scheme)

    def refusal(self, value: ir.Value, seen: ChannelStatistics) -> str:
        """Why the value is not quantized; empty where it is."""
        reason = broken_numbers.of_activation(seen.mean, seen.absmax)
        return reason if reason or self.scheme.dynamic else broken_numbers.of_range(*self.of(value, seen))

    def layer_refusal(self, layer: Layer, weight: np.ndarray, seen: ChannelStatistics) -> str:
        """Why the layer does not multiply its quantized input, of which `seen` was seen; empty where it does."""
        reason = self.refusal(layer.x, seen)
        if reason:
            return f"its input {reason}"
        largest = float(seen.absmax.max(initial=0)), float(np.abs([weight.min(), weight.max()]).max())
        return broken_numbers.of_products(*largest, layers.accumulated(layer))

    def parameters(self, value: ir.Value, seen: ChannelStatistics) -> tuple[np.ndarray, np.ndarray]:
        """Return the scale, float32 [], and the zero point of the scheme's type that represent the range."""
        return scale_and_zero_point(*self.of(value, seen), self.scheme)
