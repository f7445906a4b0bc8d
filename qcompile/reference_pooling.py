"""Pooling of the reference evaluation, tap by tap: onnx's own is wrong for some pads, and slow.

Independent of everything that compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from qcompile.reference_windows import pads_of, window


class MaxPool(OpRun):
    """Largest number under each window over x [batch, channels, ..]; its place, the second output, is not covered."""

    def _run(self, x: np.ndarray, *, kernel_shape: Sequence[int], **attributes: Any) -> tuple[np.ndarray]:
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        windows = _Windows(x.shape[2:], kernel_shape, attributes)
        padded = np.pad(x, [(0, 0), (0, 0), *windows.added], constant_values=lowest)
        result = np.full((*x.shape[:2], *windows.outputs), lowest, x.dtype)
        for index in windows.taps():
            np.maximum(result, padded[index], out=result)
        return (result,)


class AveragePool(OpRun):
    """Mean of what is under each window over x [batch, channels, ..], added up in float64."""

    def _run(
        self, x: np.ndarray, *, kernel_shape: Sequence[int], count_include_pad: int | None = None, **attributes: Any
    ) -> tuple[np.ndarray]:
        windows = _Windows(x.shape[2:], kernel_shape, attributes)
        padded = np.pad(x, [(0, 0), (0, 0), *windows.added])
        counted = windows.declared if count_include_pad else [(0, 0)] * len(windows.added)
        # What lies behind the declared pads, where the size was rounded up, never counts.
        ones = np.pad(np.ones(x.shape[2:]), counted, constant_values=1)
        rest = [(all_[0] - some[0], all_[1] - some[1]) for all_, some in zip(windows.added, counted, strict=True)]
        ones = np.pad(ones, rest)
        total, count = np.zeros((*x.shape[:2], *windows.outputs)), np.zeros(windows.outputs)
        for index in windows.taps():
            total += padded[index]
            count += ones[index]
        return (np.asarray(total / count, x.dtype),)


class _Windows:
    """Where the windows lie.

    Attributes:
        outputs: number of windows along each axis.
        declared: what the pads add in front of each axis, and behind it.
        added: the same with what the last window needs beyond it.
    """

    def __init__(self, sizes: Sequence[int], kernel: Sequence[int], attributes: dict[str, Any]) -> None:
        ones = (1,) * len(kernel)
        self._steps, self._spread = attributes.get("strides") or ones, attributes.get("dilations") or ones
        self._kernel = kernel
        reach = [(size - 1) * each + 1 for size, each in zip(kernel, self._spread, strict=True)]
        before, after = pads_of(
            sizes, reach, self._steps, attributes.get("auto_pad") or "NOTSET", attributes.get("pads")
        )
        self.declared = list(zip(before, after, strict=True))
        self.outputs, self.added = [], []
        for size, (front, back), step, wide in zip(sizes, self.declared, self._steps, reach, strict=True):
            count, left = divmod(size + front + back - wide, step)
            # Rounded up, but for a window that would begin behind the array.
            more = attributes.get("ceil_mode") and left and (count + 1) * step < size + front
            self.outputs.append(count + 1 + bool(more))
            self.added.append((front, max(back, (self.outputs[-1] - 1) * step + wide - size - front)))

    def taps(self) -> list[tuple[Any, ...]]:
        """Return the index of what each element of the windows meets."""
        firsts = [[t * d for t, d in zip(tap, self._spread, strict=True)] for tap in np.ndindex(*self._kernel)]
        return [window(first, self.outputs, self._steps) for first in firsts]
