"""Signal-to-quantization-noise ratio, and what a quantized activation looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import quantize_dequantize, scale_and_zero_point, value_range

Array = npt.NDArray[Any]

_BLOCK = 2**18
"""Elements that are squared in float64 at a time: outputs may be large, e.g. logits over a vocabulary."""


def sqnr_db(signal: Array, noisy: Array) -> float:
    """Return 10 log10(sum signal^2 / sum (signal - noisy)^2) in dB; infinity where they are equal."""
    return decibels(*powers(signal, noisy))


def powers(signal: Array, noisy: Array) -> tuple[float, float]:
    """Return sum signal^2 and sum (signal - noisy)^2 of two arrays of one shape, summed in float64."""
    power = noise = 0.0
    exact, other = np.ravel(signal), np.ravel(noisy)
    for start in range(0, exact.size, _BLOCK):
        x, y = exact[start : start + _BLOCK], other[start : start + _BLOCK]
        power += float(np.sum(np.square(x, dtype=np.float64)))
        noise += float(np.sum(np.square(x - y, dtype=np.float64)))
    return power, noise


def decibels(power: float, noise: float) -> float:
    """Return 10 log10(power / noise); infinity without noise, minus infinity without power."""
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power > 0 else float("-inf")


def as_quantized(rows: Array, static_range: tuple[float, float], scheme: Scheme) -> Array:
    """Return activation rows [rows, channels] as the scheme represents them, float32.

    Args:
        rows: float32 [rows, channels].
        static_range: (low, high) of a static scheme; a dynamic one takes the ranges of the rows themselves.
        scheme: of the activation.
    """
    low, high = value_range(rows, scheme) if scheme.dynamic else static_range
    scale, zero_point = scale_and_zero_point(low, high, scheme)
    return quantize_dequantize(rows, scale, zero_point, scheme)
