"""Convolutions of the reference evaluation: products of matrices in float64, of the patches of some rows at a time.

onnx's own gather every patch with an index of 64 bits for each element, which takes gigabytes for a photo, and add up
transposed convolutions in Python, pixel by pixel. Independent of everything that compiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from onnx.reference.op_run import OpRun

from qcompile.reference_windows import halves, pads_of, window

_ELEMENTS = 2**21
"""Elements of the patches of a block of rows: 16 MiB in float64. Less would stay in the cache of a core, but on a busy
machine the threads of a matrix product wait for each other each time."""


class Conv(OpRun):
    """x [batch, channels, ..] * w [outputs, channels / group, ..] + b [outputs], added up in float64."""

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        b: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,  # noqa: ARG002  # that of w
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[np.ndarray]:
        kernel, groups = w.shape[2:], group or 1
        steps, spread = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
        reach = [(size - 1) * each + 1 for size, each in zip(kernel, spread, strict=True)]
        before, after = pads_of(x.shape[2:], reach, steps, auto_pad or "NOTSET", pads)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, steps, strict=True)]
        result = np.empty((len(x), len(w), *sizes), x.dtype)
        weight = w.reshape(groups, len(w) // groups, -1).astype(np.float64)
        rows = max(1, _ELEMENTS // max(1, x.shape[1] * math.prod(kernel) * math.prod(sizes[1:])))
        for item, start in itertools.product(range(len(x)), range(0, sizes[0], rows)):
            block = [min(rows, sizes[0] - start), *sizes[1:]]
            patches = np.empty((groups, x.shape[1] // groups, math.prod(kernel), *block))
            for index, tap in enumerate(np.ndindex(*kernel)):
                first = [t * d for t, d in zip(tap, spread, strict=True)]
                first[0] += start * steps[0]
                part = padded[item][window(first, block, steps)]
                patches[:, :, index] = part.reshape(*patches.shape[:2], *block)
            total = weight @ patches.reshape(groups, -1, math.prod(block))
            result[item, :, start : start + rows] = total.reshape(len(w), *block) + _bias(b, len(kernel))
        return (result,)


class ConvTranspose(OpRun):
    """x [batch, channels, ..] spread by w [channels, outputs / group, ..], plus b [outputs], added up in float64."""

    def _run(
        self,
        x: np.ndarray,
        w: np.ndarray,
        b: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,  # noqa: ARG002  # that of w
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[np.ndarray]:
        kernel, groups, ones = w.shape[2:], group or 1, (1,) * (w.ndim - 2)
        steps, spread, more = strides or ones, dilations or ones, output_padding or (0,) * len(kernel)
        inputs, outputs = x.shape[2:], groups * w.shape[1]
        whole = [
            (n - 1) * s + (k - 1) * d + 1 + m for n, s, k, d, m in zip(inputs, steps, kernel, spread, more, strict=True)
        ]
        before, sizes = _cropped(whole, inputs, steps, auto_pad or "NOTSET", pads, output_shape)
        total = np.zeros((len(x), outputs, *whole))
        values = x.reshape(len(x), groups, -1, math.prod(inputs)).astype(np.float64)
        weight = w.reshape(groups, -1, *w.shape[1:]).astype(np.float64).swapaxes(1, 2)
        for tap in np.ndindex(*kernel):
            first = [t * d for t, d in zip(tap, spread, strict=True)]
            reached = window(first, inputs, steps)
            total[reached] += (weight[(..., *tap)] @ values).reshape(len(x), outputs, *inputs)
        kept = np.zeros((len(x), outputs, *sizes))  # an output_shape may be larger than what the inputs reach
        there = [min(size, n - first) for size, n, first in zip(sizes, whole, before, strict=True)]
        kept[window([0] * len(kernel), there, ones)] = total[window(before, there, ones)]
        return (np.asarray(kept + _bias(b, len(kernel)), x.dtype),)


def _bias(b: np.ndarray | None, rank: int) -> np.ndarray:
    return np.zeros(()) if b is None else b.astype(np.float64).reshape(-1, *(1,) * rank)


def _cropped(
    whole: Sequence[int],
    inputs: Sequence[int],
    steps: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """Return where what is kept of each axis begins, and how long it is."""
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if output_shape is None and not same:
        given = list(pads or (0,) * 2 * len(whole)) if auto_pad == "NOTSET" else [0] * 2 * len(whole)
        before, after = given[: len(whole)], given[len(whole) :]
        return before, [n - b - a for n, b, a in zip(whole, before, after, strict=True)]
    asked = list(output_shape or (n * s for n, s in zip(inputs, steps, strict=True)))[-len(whole) :]
    before, _ = halves([max(0, n - size) for n, size in zip(whole, asked, strict=True)], auto_pad)
    # As in the runtimes: what the inputs do not reach is made for an output_shape only.
    return before, asked if output_shape else [min(n, size) for n, size in zip(whole, asked, strict=True)]
