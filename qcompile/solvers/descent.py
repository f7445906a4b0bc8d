"""Descent on the output error of a rounded weight: its scales by least squares, then its integers row by row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import usable_scale

Array = npt.NDArray[Any]

_BLOCK = 64
_SMALLEST_RIDGE = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded weight on its way, all float32.

    Attributes:
        integers: [inputs, outputs].
        scale: [groups, outputs].
        zero: zero points, [groups, outputs]; None where they are 0.
    """

    integers: Array
    scale: Array
    zero: Array | None


def descend(weight: Array, rounded: Rounded, moments: Array, scheme: GroupScheme, order: Array, sweeps: int) -> Rounded:
    """Return a rounded weight whose output error, tr (W - Q)^T H (W - Q), is no larger, and mostly smaller.

    Args:
        weight: float32 [inputs, outputs].
        rounded: what is to be improved; its integers are changed.
        moments: H, float32 [inputs, inputs], positive definite.
        scheme: how the weight is stored.
        order: of the inputs, in which their integers are set.
        sweeps: how often all scales, and then all integers, are set.
    """
    size = scheme.size(len(weight))
    group = np.arange(len(weight)) // size
    scale, zero = rounded.scale, None if rounded.zero is None else rounded.zero[group]
    for _ in range(sweeps):
        steps = rounded.integers if zero is None else rounded.integers - zero
        scale = fitted_scale(weight, steps, scale, moments, size)
        set_integers(weight, rounded.integers, scale[group], zero, moments, order, scheme.range)
    return Rounded(rounded.integers, scale, rounded.zero)


def fitted_scale(weight: Array, steps: Array, scale: Array, moments: Array, size: int) -> Array:
    """Return the scales, float32 [groups, outputs], that have the smallest output error for given integers.

    Least squares of each output: (w - A s)^T H (w - A s), where a column of A has the integers of one group.

    Args:
        weight: float32 [inputs, outputs].
        steps: integers less their zero points, float32 [inputs, outputs].
        scale: is kept where the integers of a group are all 0, or nothing usable is found.
        moments: H, float32 [inputs, inputs].
        size: inputs of a group.
    """
    inputs, outputs = weight.shape
    groups, starts = len(scale), np.arange(0, inputs, size)
    normal = np.empty((outputs, groups, groups), np.float64)
    for index, start in enumerate(starts):
        product = moments[:, start : start + size] @ steps[start : start + size]
        product *= steps
        normal[:, :, index] = np.add.reduceat(product, starts, axis=0).T
    target = moments @ weight
    target *= steps
    right = np.add.reduceat(target, starts, axis=0).T.astype(np.float64)
    diagonal = np.einsum("ngg->ng", normal)  # a view
    diagonal += 1e-6 * diagonal.mean(axis=1, keepdims=True) + _SMALLEST_RIDGE
    found = np.linalg.solve(normal, right[..., None])[..., 0].T
    usable = (found != 0) & (np.abs(found) < np.finfo(np.float32).max)
    return usable_scale(np.where(usable, found, scale).astype(np.float32))


def set_integers(
    weight: Array,
    integers: Array,
    scale: Array,
    zero: Array | None,
    moments: Array,
    order: Array,
    bounds: tuple[int, int],
) -> None:
    """Set each row of integers, in place, to what has the smallest output error while the others stay as they are.

    Args:
        weight: float32 [inputs, outputs].
        integers: the same shape.
        scale: the same shape.
        zero: zero points, the same shape; None where they are 0.
        moments: H, float32 [inputs, inputs].
        order: of the rows.
        bounds: smallest and largest integer.
    """
    left = weight - (integers if zero is None else integers - zero) * scale
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        within = moments[np.ix_(rows, rows)]
        slopes = moments[rows] @ left
        moved = np.zeros((len(rows), weight.shape[1]), np.float32)
        for index, row in enumerate(rows):
            change = slopes[index] - within[index, :index] @ moved[:index]
            change /= within[index, index]
            change /= scale[row]
            change += integers[row]
            np.rint(change, out=change)
            np.clip(change, *bounds, out=change)
            change -= integers[row]
            integers[row] += change
            np.multiply(change, scale[row], out=moved[index])
            left[row] -= moved[index]
