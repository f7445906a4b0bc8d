"""GPTQ for weights in groups: rounding that makes up for its errors, then descent on the output error that is left."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.descent import Rounded, descend
from qcompile.solvers.gptq import SMALLEST_DAMP, Grid, factored, rounded_rows
from qcompile.solvers.grouped import Evidence, Grouped, column_blocks, finite, on_all_cores
from qcompile.solvers.rtn import rtn, searched_scale

Array = npt.NDArray[Any]

_COLUMNS = 1024
"""Outputs that are rounded at a time."""


def gptq_groups(
    weight: Array,
    scheme: GroupScheme,
    seen: Evidence,
    *,
    damp_percent: float = 0.01,
    desc_act: bool = True,
    static_groups: bool = True,
    range_grid: int = 10,
    sweeps: int = 1,
) -> Grouped:
    """Return a weight whose products with what calibration saw are as close to those of the float weight as it finds.

    Frantar et al., "GPTQ" (2023), algorithm 1, at scales that are searched under the diagonal of the second moments;
    then, `sweeps` times, the scales by least squares and each integer by descent. Without second moments, or where they
    cannot be factored with any damping, the weight is rounded to nearest at searched scales, and the remark says so.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        seen: second moments of the inputs.
        damp_percent: share of the mean energy that is added to each; raised tenfold until the moments factor.
        desc_act: inputs are rounded in falling order of their energy, else in theirs.
        static_groups: the scales are those of the float weight; else each group's are searched when its turn comes,
            on what the errors of those before it have made of it. Inputs are then rounded in their order.
        range_grid: how many parts of the range of a group are tried as its scale.
        sweeps: how often the scales and the integers are set anew.
    """
    nearest = rtn(weight, scheme, seen, range_grid=range_grid)
    if seen.gram is None:
        return dataclasses.replace(nearest, remark="rounded to nearest: there are no second moments of its input")
    ordered = desc_act and static_groups
    order = np.argsort(-np.diagonal(seen.gram), kind="stable") if ordered else np.arange(len(weight))
    triangle = factored(seen.gram[np.ix_(order, order)], damp_percent)
    if triangle is None:
        return dataclasses.replace(nearest, remark="rounded to nearest: the second moments of its input do not factor")
    triangle, moments = triangle.astype(np.float32), _damped(seen.gram, damp_percent)
    group = order // scheme.size(len(weight))
    energy = seen.energy(len(weight))
    source = finite(weight)
    result = Grouped(np.empty_like(nearest.integers), nearest.scale.copy(), nearest.zero_point)

    def solve(columns: slice) -> None:
        scale = result.scale[:, columns]
        zero = None if result.zero_point is None else result.zero_point[:, columns].astype(np.float32)

        def grid(rows: slice, moved: Array) -> Grid:
            if not static_groups:
                index = group[rows.start]
                found, other = searched_scale(moved[None], energy[rows][None, :, None], scheme, range_grid)
                scale[index] = found[0]
                if zero is not None:
                    zero[index] = other[0]
            of = group[rows]
            return scale[of], None if zero is None else zero[of], scheme.range

        block = 128 if static_groups else scheme.size(len(weight))
        integers = np.empty((len(weight), columns.stop - columns.start), np.float32)
        integers[order] = rounded_rows(source[order, columns], triangle, grid, block)
        found = descend(source[:, columns], Rounded(integers, scale, zero), moments, scheme, order, sweeps)
        result.integers[:, columns], result.scale[:, columns] = found.integers, found.scale
        if result.zero_point is not None:
            result.zero_point[:, columns] = found.zero

    on_all_cores(solve, column_blocks(weight.shape[1], _COLUMNS))
    return result


def _damped(gram: Array, damp_percent: float) -> Array:
    """Return the second moments over their mean energy, with this share of it added to each, at least a little."""
    moments = np.asarray(gram / np.diagonal(gram).mean(dtype=np.float64), np.float32)
    np.fill_diagonal(moments, np.diagonal(moments) + np.float32(max(damp_percent, SMALLEST_DAMP)))
    return moments
