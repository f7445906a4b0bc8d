"""Windows that move over the axes of an array: what convolutions and pooling of the reference have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def window(first: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> tuple[Any, ...]:
    """Return the index of every step-th element from the first, as many as there are, along the last axes."""
    return (..., *(slice(f, f + (n - 1) * s + 1, s) for f, n, s in zip(first, sizes, steps, strict=True)))


def pads_of(
    sizes: Sequence[int], reach: Sequence[int], steps: Sequence[int], auto_pad: str, pads: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """Return how much is added in front of each axis, and behind it.

    Args:
        sizes: of the axes.
        reach: of the window, with its dilation.
        steps: of the window.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
        pads: where auto_pad is NOTSET, in front of all axes and then behind them; None: nothing.
    """
    if auto_pad == "NOTSET":
        given = list(pads or (0,) * 2 * len(sizes))
        return given[: len(sizes)], given[len(sizes) :]
    if auto_pad == "VALID":
        return [0] * len(sizes), [0] * len(sizes)
    totals = [max(0, (-(-n // s) - 1) * s + r - n) for n, r, s in zip(sizes, reach, steps, strict=True)]
    return halves(totals, auto_pad)


def halves(totals: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Split each total; of an odd one the larger half comes last for SAME_UPPER, and first otherwise."""
    smaller, larger = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
