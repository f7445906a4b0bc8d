"""HQQ: half-quadratic quantization in groups, which needs no data and lets outliers be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence, Grouped, in_blocks, usable_scale
from qcompile.solvers.rtn import rounded, searched_scale

Array = npt.NDArray[Any]

_NORM = 0.7
_PENALTY, _PENALTY_GROWTH = 10.0, 1.1


def hqq(
    weight: Array, scheme: GroupScheme, seen: Evidence = NOTHING_SEEN, *, iterations: int = 6, n_grid: int = 5
) -> Grouped:
    """Return a weight rounded to nearest, at scales that keep most of its numbers close and not those far out.

    Minimises sum |W - Q|^p, p = 0.7, by turns over the part of the error that is taken for an outlier and over the
    parameters of a group: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023),
    equations 3 to 6. Zero points here are integers, as kernels have them, and the scale is what is fitted, by least
    squares. Of all turns the parameters with the smallest squared error are kept, the range among them.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        seen: is not looked at.
        iterations: how many turns.
        n_grid: how many parts of the range are tried as the scale to begin with.
    """
    del seen
    size = scheme.size(len(weight))

    def solve(block: Array, _: slice) -> Grouped:
        ones = np.ones((len(block), size, 1), np.float32)
        scale, zero = searched_scale(block, ones, scheme, n_grid)
        return rounded(block, *_fitted(block, scale, zero, scheme, iterations), scheme)

    return in_blocks(weight, scheme, solve)


def _fitted(block: Array, start: Array, zero: Array, scheme: GroupScheme, iterations: int) -> tuple[Array, Array]:
    """Return the best scale and zero point, float32 [groups, columns], that are met from these on."""
    smallest, largest = scheme.range
    scale, best, best_zero, penalty = start, start.copy(), zero.copy(), _PENALTY
    least = np.full(start.shape, np.inf, np.float32)  # in squares of the first scale
    for _ in range(iterations + 1):
        error = block / scale[:, None]
        integers = np.rint(error)
        np.clip(integers, smallest - zero[:, None], largest - zero[:, None], out=integers)
        error -= integers
        squared = np.square(error).sum(axis=1) * np.square(scale / start)
        better = squared < least
        for kept, new in ((least, squared), (best, scale), (best_zero, zero)):
            np.copyto(kept, new, where=better)
        error -= _outliers(error, penalty)
        penalty *= _PENALTY_GROWTH
        power = np.square(integers).sum(axis=1)
        if not scheme.sym:
            zero = np.clip(np.rint(zero - error.mean(axis=1)), smallest, largest)
        scale = usable_scale(scale * (1 + (integers * error).sum(axis=1) / np.maximum(power, 1)))
    return best, best_zero


def _outliers(error: Array, penalty: float) -> Array:
    """Part of the error that is taken for an outlier: the generalised soft threshold, equation 5 of the paper."""
    magnitude = np.abs(error)
    np.maximum(magnitude, 1e-6, out=magnitude)
    shrunk = magnitude - np.float32(1 / penalty) * np.power(magnitude, np.float32(_NORM - 1))
    np.maximum(shrunk, 0, out=shrunk)
    return np.copysign(shrunk, error)
