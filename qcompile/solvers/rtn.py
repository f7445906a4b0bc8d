"""Rounding to nearest in groups, with the scale of the range of a group or the one with the smallest squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence, Grouped, in_blocks, usable_scale
from qcompile.solvers.scale_trial import ScaleTrial

Array = npt.NDArray[Any]

_FITS = 2


def _shrunk_most(bits: int) -> float:
    """Part of the range of a group that the smallest scale that is tried represents: less of it for few bits."""
    return float(1 - 0.65 * 2.0 ** (1 - bits / 2))


def rtn(weight: Array, scheme: GroupScheme, seen: Evidence = NOTHING_SEEN, *, range_grid: int = 0) -> Grouped:
    """Return a weight rounded to nearest.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        seen: energies of the inputs weigh their errors where scales are searched.
        range_grid: 0: a scale represents the range of its group. Else that many parts of the range are tried, of a
            symmetric group with the extreme on either end, and that with the smallest squared error is taken.
    """
    size = scheme.size(len(weight))
    energy = seen.groups(len(weight), scheme)

    def solve(block: Array, rows: slice) -> Grouped:
        scale, zero = range_scale(block, scheme)
        if range_grid:
            of_block = energy[rows.start // size :][: len(block)]
            scale, zero = searched_scale(block, of_block, scheme, range_grid)
        return rounded(block, scale, zero, scheme)

    return in_blocks(weight, scheme, solve)


def range_scale(block: Array, scheme: GroupScheme) -> tuple[Array, Array]:
    """Return scale and zero point, float32 [groups, columns], that represent all of a block [groups, size, columns].

    A symmetric scale has the sign that lets the extreme of its group be the smallest integer.
    """
    low, high = block.min(axis=1, initial=0.0), block.max(axis=1, initial=0.0)
    smallest, largest = scheme.range
    if scheme.sym:
        return usable_scale(np.where(high > -low, high, low) / smallest), np.zeros_like(low)
    scale = usable_scale((high - low) / (largest - smallest))
    return scale, np.clip(np.rint(-low / scale), smallest, largest)


def searched_scale(block: Array, energy: Array, scheme: GroupScheme, range_grid: int) -> tuple[Array, Array]:
    """Return the scale and zero point of the smallest error, sum of energy * (block - rounded)^2 over each group.

    Parts of the range are tried, then the scale that fits the integers of the best by least squares, and that of its
    integers. The zero point is that of the whole range: a part of it, cut off at both ends alike, has the same.

    Args:
        block: float32 [groups, size, columns].
        energy: float32 [groups, size, 1].
        scheme: how it is stored.
        range_grid: how many parts of the range are tried, for each sign.
    """
    scale, zero = range_scale(block, scheme)
    # With the sign that lets the extreme be the largest integer, a scale as large as this represents all of the range.
    most = scheme.range[0] / -scheme.range[1] if scheme.sym and scheme.range[1] else 1.0
    trial = ScaleTrial(block, energy, scale, zero, scheme)
    for part in np.linspace(_shrunk_most(scheme.bits), most, range_grid):
        for sign in (1, -1) if scheme.sym else (1,):
            trial.of(usable_scale(scale * np.float32(part * sign)))
    trial.of(trial.best)
    for _ in range(_FITS):
        trial.of(trial.fitted())
    return trial.best, zero


def rounded(block: Array, scale: Array, zero: Array, scheme: GroupScheme) -> Grouped:
    """Return a block [groups, size, columns] rounded to nearest; the block becomes the integers."""
    np.divide(block, scale[:, None], out=block)
    np.rint(block, out=block)
    if not scheme.sym:
        block += zero[:, None]
    np.clip(block, *scheme.range, out=block)
    if scheme.sym:
        return Grouped(block.astype(np.int8), scale)
    return Grouped(block.astype(np.uint8), scale, zero.astype(np.uint8))
