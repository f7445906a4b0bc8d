"""Operators of the reference evaluation that take elements elsewhere: Resize, Pad, GatherElements.

onnx's own visit every pixel in Python, or know less than the runtimes. Independent of everything that compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from onnx.reference.op_run import OpRun

_MODES: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}

ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda place: np.asarray(np.ceil(place - np.float32(0.5))),
    "round_prefer_ceil": lambda place: np.asarray(np.floor(place + np.float32(0.5))),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""Which neighbour of a place between two pixels is the nearest, by nearest_mode."""


class Resize(OpRun):
    """Nearest neighbour and linear interpolation of x, axis by axis; places in float32, as the runtimes have them."""

    def _run(
        self,
        x: np.ndarray,
        roi: np.ndarray | None = None,  # noqa: ARG002  # for tf_crop_and_resize, which is not covered
        scales: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
        axes: Sequence[int] | None = None,
        mode: str | None = None,
        coordinate_transformation_mode: str | None = None,
        nearest_mode: str | None = None,
        **_: Any,
    ) -> tuple[np.ndarray]:
        given = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
        nearest = (mode or "nearest") == "nearest"
        result = x if nearest else x.astype(np.float64)
        for index, axis in enumerate(given):
            size = x.shape[axis]
            if scales is not None and scales.size:
                scale = np.float32(scales[index])
                count = int(np.floor(size * scale))
            else:
                assert sizes is not None
                count = int(sizes[index])
                scale = np.float32(count) / np.float32(size)
            if count == size and scale == 1:
                continue
            place = _places(size, count, scale, coordinate_transformation_mode or "half_pixel")
            if nearest:
                pixel = ROUNDINGS[nearest_mode or "round_prefer_floor"](place)
                result = result.take(np.clip(pixel, 0, size - 1).astype(np.int64), axis)
            else:
                result = _between(result, np.clip(place, 0, size - 1), axis)
        return (result.astype(x.dtype),)


def _places(size: int, count: int, scale: np.float32, mode: str) -> np.ndarray:
    """Return where each of `count` results lies on an axis of `size` pixels, float32 [count]."""
    index, half = np.arange(count, dtype=np.float32), np.float32(0.5)
    if mode == "asymmetric":
        return np.asarray(index / scale)
    if mode == "align_corners":
        return np.asarray(index * np.float32(size - 1) / np.float32(max(count - 1, 1)))
    if mode == "pytorch_half_pixel" and count == 1:
        return np.zeros(1, np.float32)
    return np.asarray((index + half) / scale - half)


def _between(x: np.ndarray, place: np.ndarray, axis: int) -> np.ndarray:
    """Return x at places between its elements along an axis."""
    lower = np.floor(place).astype(np.int64)
    part = (place - lower).astype(np.float64).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    upper = np.minimum(lower + 1, x.shape[axis] - 1)
    return np.asarray(x.take(lower, axis) * (1 - part) + x.take(upper, axis) * part)


class Pad(OpRun):
    """x with more in front of and behind its axes, or less where a pad is negative."""

    def _run(
        self,
        x: np.ndarray,
        pads: np.ndarray,
        constant_value: np.ndarray | None = None,
        axes: np.ndarray | None = None,
        mode: str | None = None,
    ) -> tuple[np.ndarray]:
        given = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
        less, more = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
        for axis, front, back in zip(given, pads[: len(given)].tolist(), pads[len(given) :].tolist(), strict=True):
            less[axis] = slice(max(0, -front), x.shape[axis] - max(0, -back))
            more[axis] = max(0, front), max(0, back)
        rest = x[tuple(less)]
        if (mode or "constant") == "constant":
            value = 0 if constant_value is None or not np.size(constant_value) else np.asarray(constant_value).item()
            return (np.pad(rest, more, constant_values=value),)
        return (np.pad(rest, more, mode=_MODES[str(mode)]),)


class GatherElements(OpRun):
    """x at an index along one axis; the index may be smaller than x along the others."""

    def _run(self, x: np.ndarray, indices: np.ndarray, axis: int | None = None) -> tuple[np.ndarray]:
        along = (axis or 0) % x.ndim
        part = x[tuple(slice(None) if each == along else slice(n) for each, n in enumerate(indices.shape))]
        return (np.take_along_axis(part, indices % x.shape[along], along),)
