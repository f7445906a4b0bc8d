"""HQQ: half-quadratic quantization in groups, which needs no data and lets outliers be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import NOTHING_SEEN, Evidence, Grouped, in_blocks
from qcompile.solvers.rtn import rounded, searched_scale
from qcompile.solvers.scale_trial import ScaleTrial

Array = npt.NDArray[Any]

_NORM = 0.7
_PENALTY, _PENALTY_GROWTH = 10.0, 1.1


def hqq(
    weight: Array, scheme: GroupScheme, seen: Evidence = NOTHING_SEEN, *, iterations: int = 3, range_grid: int = 5
) -> Grouped:
    """Return a weight rounded to nearest, at scales that keep most of its numbers close and not those far out.

    Minimises sum |W - Q|^p, p = 0.7, by turns over the part of the error that is taken for an outlier and over the
    parameters of a group: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023),
    equations 3 to 5. The scale is what is fitted, by least squares. Zero points, which equation 6 moves by the mean of
    what is left of the error, are integers here, as kernels have them, and stay: what is left is never half a step, see
    `_take_outliers`. Of all turns the scale with the smallest squared error is kept, that of the first search included.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        seen: energies of the inputs weigh their errors; the paper's method has none.
        iterations: how many turns.
        range_grid: how many parts of the range are tried as the scale to begin with.
    """
    size = scheme.size(len(weight))
    energy = seen.groups(len(weight), scheme)

    def solve(block: Array, rows: slice) -> Grouped:
        of_block = energy[rows.start // size :][: len(block)]
        trial = ScaleTrial(block, of_block, *searched_scale(block, of_block, scheme, range_grid), scheme)
        for turn in range(iterations):
            _take_outliers(trial.error, _PENALTY * _PENALTY_GROWTH**turn)
            trial.of(trial.fitted())
        return rounded(block, trial.best, trial.zero, scheme)

    return in_blocks(weight, scheme, solve)


def _take_outliers(error: Array, penalty: float) -> None:
    """Take what counts as an outlier off the error: the generalised soft threshold, equation 5 of the paper.

    What is left of e is the smaller of |e| and |e|^(p - 1) / penalty, with its sign: at most penalty^(-1 / (2 - p)),
    where the two are equal, which is 0.17 for the smallest penalty.
    """
    left = np.abs(error)
    left += np.float32(1e-6)
    np.log(left, out=left)
    left *= np.float32(_NORM - 2)
    left -= np.float32(np.log(penalty))
    np.clip(left, -80, 0, out=left)
    np.exp(left, out=left)
    error *= left
