"""AWQ: scales of input channels that spare the weights of those that carry the most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.rtn import rtn

Array = npt.NDArray[Any]

_OUTPUTS = 256
"""At most so many outputs of a linear decide."""
_PARTS = 5
"""Parts of the range that are tried as the scale of a group."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """The scales that were found.

    Attributes:
        scale: by which the rows of the weights are multiplied, float32 [inputs], positive; ones where none pays.
        error_without: squared error of the output without a scale, relative to the output.
        error: the same with it.
    """

    scale: Array
    error_without: float
    error: float


def awq(rows: Array, weights: Sequence[Array], scheme: GroupScheme, ties: Array, n_grid: int = 10) -> Scales:
    """Return the scale of the input of linears with the smallest error of what they write, the weights quantized.

    Lin et al., "AWQ: Activation-aware Weight Quantization" (2023), equations 4 and 5: s = mean |x| ** ratio, for ratios
    from 0 to 1; the scales of groups are searched as well, which is the paper's clipping. Of linears with many outputs
    some decide for all.

    Args:
        rows: of what the linears multiply, float32 [rows, inputs].
        weights: of the linears that read it, float32 [inputs, outputs] each.
        scheme: how they will be stored.
        ties: [inputs]; inputs with the same number share a scale.
        n_grid: how many ratios are tried.
    """
    count = np.bincount(ties)
    mean = (np.bincount(ties, np.abs(rows).mean(axis=0)) / np.maximum(count, 1))[ties]
    usable = bool(np.isfinite(mean).all() and (mean > 0).any())
    ones = np.ones(rows.shape[1], np.float32)
    some = [weight[:, :: -(-weight.shape[1] // _OUTPUTS) or 1] for weight in weights]
    shares = [weight.shape[1] / max(part.shape[1], 1) for weight, part in zip(weights, some, strict=True)]
    power = sum(share * _power(rows @ part) for share, part in zip(shares, some, strict=True))

    def error(scale: Array) -> float:
        seen = Evidence(squares=np.square(rows / scale).mean(axis=0))
        noise = 0.0
        for share, part in zip(shares, some, strict=True):
            back = rtn(part * scale[:, None], scheme, seen, range_grid=_PARTS).weight(scheme.group_size)
            back /= scale[:, None]
            back -= part
            noise += share * _power(rows @ back)
        return noise / power if power > 0 else 0.0

    without = best = error(ones)
    scale = ones
    for ratio in np.linspace(0, 1, n_grid + 1)[1:] if usable else ():
        floor = mean[mean > 0].min()
        other = np.maximum(mean, floor) ** ratio
        other = (other / np.sqrt(other.max() * other.min())).astype(np.float32)
        found = error(other)
        if found < best:
            best, scale = found, other
    return Scales(scale, without, best)


def _power(outputs: Array) -> float:
    return float(np.square(outputs, out=outputs).sum(dtype=np.float64))
