"""Families of smoothing scales: formulas from the magnitudes of the channels and of the weight rows behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LARGEST_FACTOR = 1e5


def smoothing_scale(absmax_x: Array, absmax_w: Array, alpha: float, beta: float | None = None) -> Array:
    """Return s_j = absmax_x_j**alpha / absmax_w_j**beta, equation 4 of SmoothQuant with beta = 1 - alpha.

    Channels whose magnitudes are zero or not finite get 1. The result is finite, within 1e-5 and 1e5.

    Args:
        absmax_x: [channels] largest magnitude of each input channel.
        absmax_w: [channels] largest magnitude of each weight row, over all linears that read the value.
        alpha: how much of the range of x goes into the weights, 0 to 1.
        beta: exponent of the weights; None for 1 - alpha.
    """
    x, w = np.asarray(absmax_x, np.float64), np.asarray(absmax_w, np.float64)
    usable = np.isfinite(x) & np.isfinite(w) & (x > 0) & (w > 0)
    x, w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    scale = np.exp(alpha * np.log(x) - (1 - alpha if beta is None else beta) * np.log(w))
    return np.clip(scale, 1 / LARGEST_FACTOR, LARGEST_FACTOR).astype(np.float32)


def largest_tied(per_channel: Array, groups: npt.NDArray[np.int64]) -> Array:
    """Return for each channel the largest finite value among those of its group, which share a factor; 0 for none."""
    largest = np.zeros(int(groups.max(initial=0)) + 1, np.float32)
    np.maximum.at(largest, groups, np.where(np.isfinite(per_channel), per_channel, 0))
    return largest[groups]


@dataclasses.dataclass(frozen=True)
class Family:
    """s_j = max(x_j**alpha / w_j**beta, absmax_x_j / threshold), up to a factor common to all channels.

    With beta = 1 - alpha and limit = 1 it is equation 4 of SmoothQuant; with alpha = beta = 0 it divides only what is
    beyond a threshold, as Outlier Suppression+ (Wei et al. 2023, section 4.2). alpha = beta = 1/2 on root mean squares
    is the optimum where the noise of all activations is alike, and that of all weights.

    Attributes:
        typical: x and w are root mean squares of the channels instead of their largest magnitudes.
        alpha: exponent of x.
        beta: exponent of w.
        limit: threshold, as part of the range that the first term alone would leave; 0 to 1.
    """

    typical: bool
    alpha: float
    beta: float
    limit: float

    def scale(self, magnitudes: Magnitudes) -> Array:
        """Return the scale, float32 [channels], finite, with a geometric mean near 1."""
        absmax_x, _ = magnitudes.absmax
        x, w = magnitudes.typical if self.typical else magnitudes.absmax
        usable = (x > 0) & (w > 0) & (absmax_x > 0)
        first = smoothing_scale(np.where(usable, x, 1), np.where(usable, w, 1), self.alpha, self.beta)
        first /= np.exp(np.log(first).mean())
        threshold = (absmax_x / first).max(initial=0) * self.limit
        second = absmax_x / threshold if threshold > 0 else absmax_x
        scale = np.clip(np.maximum(first, second), 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        return np.where(usable, scale, 1).astype(np.float32)

    def neighbours(self, step: float) -> Iterator[Family]:
        """Families next to this one, one parameter changed."""
        for change in (step, -step):
            yield dataclasses.replace(self, alpha=self.alpha + change)
            yield dataclasses.replace(self, beta=self.beta + change)
            yield dataclasses.replace(self, limit=min(1.0, self.limit * np.exp(3 * change)))


@dataclasses.dataclass(frozen=True, eq=False)
class Magnitudes:
    """Magnitudes of the channels of x and of the rows of W, in two measures.

    Attributes:
        absmax: largest magnitudes.
        typical: root mean squares.
    """

    absmax: tuple[Array, Array]
    typical: tuple[Array, Array]


STARTS = tuple(
    Family(typical, alpha, beta, limit)
    for typical in (True, False)
    for alpha, beta in ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.5, 0.0), (0.6, 0.4), (0.75, 0.25), (0.9, 0.1))
    for limit in ((1.0, 0.5, 0.25, 0.12, 0.06) if alpha <= 0.5 else (1.0,))
    if alpha > 0 or (typical and limit < 1)
)
STEPS = (0.15, 0.08, 0.04)
