"""Affine quantization of arrays: x ~ (q - zero_point) * scale, with the rounding and saturation of ONNX QuantizeLinear.

Defined for every float input. Ranges always contain zero, so that zero is represented exactly. A scale is a finite,
normal, positive float32: 1 where the range is [0, 0], the smallest normal float32 where the range is narrower than
that. NaN takes no part in ranges and quantizes to the zero point; infinities take no part in ranges and saturate, and
so does what is beyond half of the largest float32.

Method: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(2018), section 2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme

Array = npt.NDArray[Any]

# Half of float32, so that no quantized number stands for infinity after the zero point has been rounded.
_LARGEST = float(np.finfo(np.float32).max) / 2
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def scale_and_zero_point(low: npt.ArrayLike, high: npt.ArrayLike, scheme: Scheme) -> tuple[Array, Array]:
    """Return the scale (float32) and zero point (dtype of the scheme) that represent [low, high].

    Args:
        low: lower ends of the ranges, any shape; widened to contain zero.
        high: upper ends, same shape.
        scheme: dtype and symmetry. Symmetric ranges are widened to [-m, m] with m = max(-low, high).
    """
    bottom = np.minimum(_finite(low), 0.0)
    top = np.maximum(_finite(high), 0.0)
    smallest, largest = scheme.range
    if scheme.sym:
        middle = (smallest + largest + 1) // 2
        scale = _usable_scale(np.maximum(-bottom, top) / (largest - middle))
        zero_point = np.full(scale.shape, middle)
    else:
        scale = _usable_scale((top - bottom) / (largest - smallest))
        zero_point = np.clip(np.rint(smallest - bottom / scale), smallest, largest)
    return scale, np.asarray(zero_point, scheme.dtype)


def _finite(ends: npt.ArrayLike) -> Array:
    return np.clip(np.nan_to_num(np.asarray(ends, np.float64), nan=0.0), -_LARGEST, _LARGEST)


def _usable_scale(scale: Array) -> Array:
    clipped = np.where(scale == 0.0, 1.0, np.clip(scale, _SMALLEST_NORMAL, _LARGEST))
    return clipped.astype(np.float32)


def value_range(x: Array, scheme: Scheme, axis: int | None = None) -> tuple[Array, Array]:
    """Return the smallest and largest finite elements per group of elements that share a scale, at least [0, 0].

    Args:
        x: any float array.
        scheme: its granularity names the groups. per_tensor gives shape []; per_channel [x.shape[axis]]; per_token
            x.shape[:-1] + [1].
        axis: channel axis for per_channel; ignored otherwise.
    """
    usable = np.isfinite(x)
    finite = (x if usable.all() else np.where(usable, x, 0)).astype(np.float32, copy=False)
    if scheme.granularity == "per_token":
        return finite.min(axis=-1, keepdims=True, initial=0.0), finite.max(axis=-1, keepdims=True, initial=0.0)
    others = _other_axes(x.ndim, axis) if scheme.granularity == "per_channel" else None
    return finite.min(axis=others, initial=0.0), finite.max(axis=others, initial=0.0)


def _other_axes(rank: int, axis: int | None) -> tuple[int, ...]:
    if axis is None:
        raise ValueError("per_channel quantization needs the channel axis")
    return tuple(index for index in range(rank) if index != axis % rank)


def quantize(x: Array, scale: Array, zero_point: Array, scheme: Scheme, axis: int | None = None) -> Array:
    """Return clip(round_half_even(x / scale) + zero_point) in the scheme's dtype, as ONNX QuantizeLinear.

    Args:
        x: float array; the arithmetic is float32.
        scale: broadcasts against x, or has one element per channel of `axis`.
        zero_point: same shape as scale.
        scheme: dtype and range; symmetric int8 saturates at -127 where QuantizeLinear would go to -128, which no
            element inside the range of the scale reaches.
        axis: channel axis of a one-dimensional scale; None to broadcast as numpy does.
    """
    smallest, largest = scheme.range
    scale, zero_point = _along(scale, x.ndim, axis), _along(zero_point, x.ndim, axis)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.asarray(np.asarray(x, np.float32) / scale)
    # In place: a weight may be a large part of the model.
    np.rint(steps, out=steps)
    np.copyto(steps, 0, where=np.isnan(steps))
    steps += zero_point.astype(np.float32)
    np.clip(steps, smallest, largest, out=steps)
    return steps.astype(scheme.dtype)


def dequantize(quantized: Array, scale: Array, zero_point: Array, axis: int | None = None) -> Array:
    """Return (quantized - zero_point) * scale in float32, as ONNX DequantizeLinear; shapes as in `quantize`."""
    scale, zero_point = _along(scale, quantized.ndim, axis), _along(zero_point, quantized.ndim, axis)
    # Integers of 8 bits are exact in float32, and one array less: a weight may be a large part of the model.
    exact = np.float32 if quantized.dtype.itemsize == 1 else np.int32
    steps = np.asarray(np.subtract(quantized, zero_point, dtype=exact, casting="unsafe"), np.float32)
    with np.errstate(over="ignore"):
        in_place = np.broadcast_shapes(steps.shape, scale.shape) == steps.shape
        return np.asarray(np.multiply(steps, scale, out=steps if in_place else None))


def quantize_dequantize(x: Array, scale: Array, zero_point: Array, scheme: Scheme, axis: int | None = None) -> Array:
    """Return x as it is after quantization, float32; arguments as in `quantize`."""
    return dequantize(quantize(x, scale, zero_point, scheme, axis), scale, zero_point, axis)


def _along(parameter: Array, rank: int, axis: int | None) -> Array:
    if axis is None or parameter.ndim != 1:
        return parameter
    shape = [1] * rank
    shape[axis] = parameter.size
    reshaped: Array = parameter.reshape(shape)
    return reshaped


def quantize_weight(weight: Array, scheme: Scheme, axis: int | None = None) -> tuple[Array, Array, Array]:
    """Return (quantized, scale, zero_point) of a weight by the range of its elements, rounded to nearest.

    Args:
        weight: any float array, e.g. [in_features, out_features].
        scheme: per_tensor gives a scalar scale, per_channel one of shape [weight.shape[axis]].
        axis: channel axis for per_channel, e.g. 1 for linears; ignored for per_tensor.
    """
    scale, zero_point = weight_scale(weight, scheme, axis)
    channel_axis = axis if scheme.granularity == "per_channel" else None
    return quantize(weight, scale, zero_point, scheme, channel_axis), scale, zero_point


def weight_scale(weight: Array, scheme: Scheme, axis: int | None = None) -> tuple[Array, Array]:
    """Return the scale and zero point of `quantize_weight` without rounding anything."""
    return scale_and_zero_point(*value_range(weight, scheme, axis), scheme)
