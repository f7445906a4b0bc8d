"""Signal-to-quantization-noise ratio, and what a quantized activation looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import quantize_dequantize, scale_and_zero_point, value_range

Array = npt.NDArray[Any]


def sqnr_db(signal: Array, noisy: Array) -> float:
    """Return 10 log10(sum signal^2 / sum (signal - noisy)^2) in dB; infinity where they are equal."""
    noise = float(np.sum(np.square(signal - noisy, dtype=np.float64)))
    power = float(np.sum(np.square(signal, dtype=np.float64)))
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
