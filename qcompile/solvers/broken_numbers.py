"""Numbers that 8 bits and a float32 scale do not stand for: why a layer that meets them stays float.

The table "Broken numbers" of README.md says in words what is decided here. Every function returns the reason, empty
where there is none. What is checked is what was seen: of a weight all of it, of an activation the calibration data.
"""

from __future__ import annotations

import math

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
_WEIGHT_STEPS, _ACTIVATION_STEPS = 127, 255
_STEPS = _WEIGHT_STEPS * _ACTIVATION_STEPS

NOT_FINITE = "holds NaN or infinity"
_TOO_SMALL = "holds nothing but numbers that are 0, or too small for the scale of 8 bits to be a normal float32"
_TOO_LARGE = "holds numbers beyond half of the largest float32, which are not told apart"


def of_weight(weight: np.ndarray) -> str:
    """Why a weight, float32 of any shape, is not stored in 8 bits; a weight of zeros is, exactly."""
    magnitude = _magnitude(weight)
    if not math.isfinite(magnitude):
        return NOT_FINITE
    if 0 < magnitude < _WEIGHT_STEPS * _SMALLEST_NORMAL:
        return _TOO_SMALL
    return _TOO_LARGE if magnitude > _LARGEST / 2 else ""


def of_bias(bias: np.ndarray | None) -> str:
    """Why the integers of a convolution do not get this bias added; one beyond int32 is added in float32."""
    return "" if bias is None or math.isfinite(_magnitude(bias)) else NOT_FINITE


def of_activation(mean: np.ndarray, largest: np.ndarray) -> str:
    """Why what calibration saw of a value cannot be quantized, whenever its scale is computed.

    Args:
        mean: of each channel; it tells of NaN, which runtimes pass over in minima and maxima.
        largest: magnitude of each channel.
    """
    if not (np.isfinite(mean).all() and np.isfinite(largest).all()):
        return f"{NOT_FINITE}, or numbers whose sum is beyond float32, on the calibration data"
    return ""


def of_range(low: float, high: float) -> str:
    """Why a range that calibration found gives no scale for static activations."""
    magnitude = max(-low, high)
    if magnitude == 0:
        return "is zero in all calibration data, which says nothing of its range"
    return _TOO_SMALL if magnitude < _ACTIVATION_STEPS * _SMALLEST_NORMAL else ""


def of_products(activation: float, weight: float, count: int) -> str:
    """Why sums of products leave float32, whatever the order in which a kernel applies the two scales.

    Args:
        activation: largest magnitude of what the layer multiplies.
        weight: largest magnitude of its weight.
        count: how many products are added up.
    """
    if activation * max(weight, 1.0) * count * _STEPS > _LARGEST:
        return f"its sums of {count} products with numbers up to {activation:.2g} are beyond float32 before scaling"
    if weight and activation and activation * min(weight, _WEIGHT_STEPS) < _STEPS * _SMALLEST_NORMAL:
        return f"its products with numbers up to {activation:.2g} are below the normal numbers of float32"
    return ""


def _magnitude(array: np.ndarray) -> float:
    """Largest magnitude, NaN or infinity where one is in it; makes no copy."""
    if array.size == 0:
        return 0.0
    # NaN passes through the minimum and the maximum of numpy.
    return float(np.maximum(-float(array.min()), float(array.max())))
