"""Resize and Upsample: one axis after the other, as weighted sums of near elements. The formulas are ONNX's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qcompile.backends.fx.host import Numbers, floats, ints
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.table import operator
from qcompile.errors import UnsupportedOperator


@dataclasses.dataclass(frozen=True)
class _Rule:
    """The attributes of a Resize that say how an axis is read."""

    coordinates: str
    mode: str
    nearest_mode: str
    cubic_coeff_a: float
    exclude_outside: bool
    extrapolation_value: float
    antialias: bool


def _origin(rule: _Rule, size: int, scale: float, made: int, start: float, end: float, like: Tensor) -> Tensor:
    """Where in the input each element of the output lies, in float64."""
    y = torch.arange(made, dtype=torch.float64, device=like.device)
    exact = scale * size
    if rule.coordinates == "align_corners":
        return y * 0 if exact == 1 else y * ((size - 1) / (exact - 1))
    if rule.coordinates == "asymmetric":
        return y / scale
    if rule.coordinates == "tf_crop_and_resize":
        if exact == 1:
            return y * 0 + (end - start) * (size - 1) / 2 + start * (size - 1)
        return y * ((end - start) * (size - 1) / (exact - 1)) + start * (size - 1)
    if rule.coordinates == "pytorch_half_pixel":
        return y * 0 - 0.5 if exact == 1 else (y + 0.5) / scale - 0.5
    if rule.coordinates == "half_pixel_symmetric":
        return size / 2 * (1 - made / exact) + (y + 0.5) / scale - 0.5
    if rule.coordinates in ("half_pixel", "tf_half_pixel_for_nn"):
        return (y + 0.5) / scale - (0.5 if rule.coordinates == "half_pixel" else 0.0)
    raise UnsupportedOperator("Resize", f"coordinates {rule.coordinates!r} are not known", "Use half_pixel")


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The kernel of cubic convolution (Keys 1981) with parameter a."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _taps(rule: _Rule, ratio: Tensor, scale: float) -> tuple[int, Tensor]:
    """Place of the first element that counts, relative to the one on the left, and the weights of all."""
    shrunk = min(scale, 1.0) if rule.antialias else 1.0
    reach = 1 if rule.mode == "linear" else 2
    first = math.floor(-reach / shrunk) + 1
    count = 2 - 2 * first
    steps = torch.arange(first, first + count, dtype=torch.float64, device=ratio.device)
    distance = (steps - ratio[:, None]) * shrunk
    weights = (1 - distance.abs()).clamp(0, 1) if rule.mode == "linear" else _cubic(distance, rule.cubic_coeff_a)
    return first, weights / weights.sum(-1, keepdim=True) if rule.antialias else weights


def _nearest(rule: _Rule, place: Tensor) -> Tensor:
    rounding = rule.nearest_mode
    if rounding == "floor":
        return place.floor()
    if rounding == "ceil":
        return place.ceil()
    return (place - 0.5).ceil() if rounding == "round_prefer_floor" else (place + 0.5).floor()


def _one_axis(x: Tensor, axis: int, made: int, scale: float, rule: _Rule, start: float, end: float) -> Tensor:
    size = x.shape[axis]
    place = _origin(rule, size, scale, made, start, end, x)
    outside = (place < 0) | (place > size - 1)
    if rule.mode == "nearest":
        chosen = _nearest(rule, place).to(torch.int64).clamp(0, size - 1)
        result = x.index_select(axis, chosen)
    else:
        left = place.ceil() - 1  # an element on a place has a ratio of 1: the one on the left counts nothing
        first, weights = _taps(rule, place - left, scale)
        near = left.to(torch.int64)[:, None] + first + torch.arange(weights.shape[1], device=x.device)
        if rule.exclude_outside:
            weights = torch.where((near >= 0) & (near < size), weights, torch.zeros_like(weights))
            weights = weights / weights.sum(-1, keepdim=True)
        parts = x.index_select(axis, near.clamp(0, size - 1).reshape(-1))
        parts = parts.reshape(*x.shape[:axis], *near.shape, *x.shape[axis + 1 :])
        shape = [1] * parts.dim()
        shape[axis], shape[axis + 1] = near.shape
        result = (parts * weights.to(x.dtype).reshape(shape)).sum(axis + 1)
    if rule.coordinates != "tf_crop_and_resize":
        return result
    kept = in_front(outside, x.dim() - 1 - axis)
    return torch.where(kept, torch.full_like(result, rule.extrapolation_value), result)


def _sizes(
    x: Tensor, along: list[int], scales: Numbers | None, sizes: Numbers | None, policy: str
) -> tuple[list[float], list[int]]:
    """The scale and the new size of each axis that is resized."""
    have = [x.shape[axis] for axis in along]
    if sizes is None or not ints(sizes):
        factors = floats(scales or ())
        return factors, [math.floor(factor * size) for factor, size in zip(factors, have, strict=True)]
    made = ints(sizes)
    factors = [want / size for want, size in zip(made, have, strict=True)]
    if policy == "stretch":
        return factors, made
    common = min(factors) if policy == "not_larger" else max(factors)
    return [common] * len(along), [int(common * size + 0.5) for size in have]


@operator("Resize", since=11, host=("roi", "scales", "sizes"))
def resize(
    x: Tensor,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Numbers | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Another size, by the nearest element, linear or cubic."""
    rule = _Rule(
        coordinate_transformation_mode,
        mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        extrapolation_value,
        bool(antialias),
    )
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    factors, made = _sizes(x, along, scales, sizes, keep_aspect_ratio_policy)
    region = floats(roi) if roi is not None and floats(roi) else [0.0] * len(along) + [1.0] * len(along)
    integers = not x.is_floating_point() and mode != "nearest"
    result = x.to(torch.float64) if integers else x
    for index, axis in enumerate(along):
        start, end = region[index], region[index + len(along)]
        if factors[index] != 1 or made[index] != x.shape[axis] or (start, end) != (0.0, 1.0):
            result = _one_axis(result, axis, made[index], factors[index], rule, start, end)
    if not integers:
        return result
    bounds = torch.iinfo(x.dtype)
    return result.round().clamp(bounds.min, bounds.max).to(x.dtype)


@operator("Resize", "Upsample", host=("scales",))
def upsample(x: Tensor, scales: Numbers, *, mode: str = "nearest") -> Tensor:
    """Resize of opset 10 and Upsample: an element lies where its index, divided by the scale, is."""
    settings: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return resize(x, None, scales, mode={"bilinear": "linear"}.get(mode, mode), **settings)
