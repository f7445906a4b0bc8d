"""Which range [low, high] of a value's elements static quantization represents; the rest saturates.

Every solver has the signature (minimum, maximum, samples, scheme) -> (low, high), the range being one of the whole
tensor. `minimum` and `maximum` are what was seen in all data, float arrays of any shape; `samples` is any array of
elements drawn evenly from it. Ranges are finite and contain zero; non-finite elements are left out; a solver that has
no samples to go by returns the whole range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import Scheme
from qcompile.solvers.affine import quantize_dequantize, scale_and_zero_point

Array = npt.NDArray[Any]
Range = tuple[float, float]
RangeSolver = Callable[[Array, Array, Array, Scheme], Range]

DEFAULT_PERCENTILE = 99.99
_TAIL = 512
_BODY = 4096
_BINS = 2048
_LEVELS = 128
_STEP = 8
_UNSEEN = 0.1
"""Weight of each extreme in units of a sample: those few elements beyond all samples thin out towards it."""


def minmax(minimum: Array, maximum: Array, samples: Array, scheme: Scheme) -> Range:  # noqa: ARG001
    """Return the whole range that was seen; nothing saturates on the calibration data."""
    ends = np.concatenate([np.ravel(minimum), np.ravel(maximum)]).astype(np.float64)
    ends = ends[np.isfinite(ends)]
    return float(ends.min(initial=0.0)), float(ends.max(initial=0.0))


def percentile(
    minimum: Array, maximum: Array, samples: Array, scheme: Scheme, percent: float = DEFAULT_PERCENTILE
) -> Range:
    """Return the range that holds `percent` of the samples, within the whole range.

    Args:
        minimum: see the module.
        maximum: see the module.
        samples: see the module.
        scheme: for a symmetric one the share counts magnitudes; else each end leaves out half of the rest.
        percent: 0 to 100; 100 is the whole range.
    """
    low, high = minmax(minimum, maximum, samples, scheme)
    elements = _finite(samples)
    if percent >= 100 or elements.size == 0:
        return low, high
    if scheme.sym:
        bound = float(np.percentile(np.abs(elements), percent))
        return max(low, -bound), min(high, bound)
    rest = (100 - percent) / 2
    bottom, top = np.percentile(elements, [rest, 100 - rest])
    return max(low, min(float(bottom), 0.0)), min(high, max(float(top), 0.0))


def mse(minimum: Array, maximum: Array, samples: Array, scheme: Scheme) -> Range:
    """Return the range whose quantization has the least mean squared error on the samples.

    Both ends shrink together first, over 48 geometric steps down to 1/300 of the whole range and 16 finer ones around
    the best; for an asymmetric scheme each end then moves by itself in the same way. Works on a `summary` of the
    samples, and on every element of `minimum` and `maximum`, a tenth of a sample each: samples are few, and what none
    of them saw would saturate at no cost. The whole range is among the candidates, so that the result is never worse
    on these.

    The criterion of Nagel et al., "A White Paper on Neural Network Quantization" (2021), section 3.1.
    """
    low, high = minmax(minimum, maximum, samples, scheme)
    elements, weights = summary(samples)
    if elements.size == 0 or low == high:
        return low, high
    extremes = _finite(np.concatenate([np.ravel(minimum), np.ravel(maximum)]))
    elements = np.concatenate([elements, extremes])
    weights = np.concatenate([weights, np.full(extremes.size, _UNSEEN, np.float32)])

    def errors(bottoms: Array, tops: Array) -> Array:
        return squared_errors(elements, weights, bottoms, tops, scheme)

    shrink = _least(1.0, lambda factors: errors(low * factors, high * factors))
    if scheme.sym:
        bound = max(-low, high) * shrink
        return max(low, -bound), min(high, bound)
    top = _least(shrink, lambda factors: errors(np.full_like(factors, low * shrink), high * factors))
    bottom = _least(shrink, lambda factors: errors(low * factors, np.full_like(factors, high * top)))
    return low * bottom, high * top


def _least(start: float, errors: Callable[[Array], Array]) -> float:
    """Return the factor in (0, 1] with the least error, searched from coarse to fine; `start` if none is better."""
    coarse = np.concatenate([[start], np.geomspace(1.0, 1 / 300, 48)])
    best = float(coarse[int(np.argmin(errors(coarse)))])
    fine = np.minimum(np.concatenate([[best], best * np.geomspace(0.88, 1 / 0.88, 16)]), 1.0)
    return float(fine[int(np.argmin(errors(fine)))])


def summary(samples: Array) -> tuple[Array, Array]:
    """Return (elements, weights) that stand for the samples: float32 [n], n <= 5120.

    The 512 smallest and the 512 largest stand for themselves, as few of them decide where saturation pays; 4096 evenly
    chosen ones, by rank, stand for all between.
    """
    elements = _finite(samples)
    if elements.size <= _BODY + 2 * _TAIL:
        return elements, np.ones_like(elements)
    elements = np.sort(elements)
    body = elements[_TAIL:-_TAIL]
    chosen = ((np.arange(_BODY) + 0.5) * (body.size / _BODY)).astype(np.int64)
    tail = np.ones(_TAIL, np.float32)
    weights = np.concatenate([tail, np.full(_BODY, body.size / _BODY, np.float32), tail])
    return np.concatenate([elements[:_TAIL], body[chosen], elements[-_TAIL:]]), weights


def squared_errors(elements: Array, weights: Array, lows: Array, highs: Array, scheme: Scheme) -> Array:
    """Return the weighted mean squared error of quantizing the elements with each range, float64 [candidates].

    Args:
        elements: float32 [n].
        weights: float32 [n].
        lows: lower ends, [candidates].
        highs: upper ends, [candidates].
        scheme: of the quantization.
    """
    scale, zero_point = scale_and_zero_point(lows, highs, scheme)
    quantized = quantize_dequantize(elements, scale[:, None], zero_point[:, None], scheme)
    error = np.square(np.subtract(quantized, elements, dtype=np.float64))
    return np.asarray(error @ weights.astype(np.float64) / weights.sum(dtype=np.float64))


def entropy(minimum: Array, maximum: Array, samples: Array, scheme: Scheme) -> Range:
    """Return the whole range cut at the magnitude that loses least information to 128 levels.

    A histogram of the magnitudes, 2048 bins, is cut at every eighth bin from the 128th; what lies beyond goes to the
    last bin left. The reference P is that histogram, the candidate Q the same one merged to 128 levels and spread
    again over the bins that were not empty; the cut with the least KL(P || Q) is taken.

    The method of TensorRT: Migacz, "8-bit Inference with TensorRT" (GTC 2017).
    """
    low, high = minmax(minimum, maximum, samples, scheme)
    elements = np.abs(_finite(samples).astype(np.float64))
    whole = max(-low, high)
    if elements.size == 0 or not elements.any() or whole < np.finfo(np.float32).tiny:
        return low, high
    counts, _ = np.histogram(elements[elements > 0], _BINS, (0.0, whole))
    cuts = np.arange(_LEVELS, _BINS + 1, _STEP)
    divergences = [_divergence(counts, int(cut)) for cut in cuts]
    bound = whole * float(cuts[int(np.argmin(divergences))]) / _BINS
    return max(low, -bound), min(high, bound)


def _divergence(counts: Array, cut: int) -> float:
    """Return KL(P || Q) in nats for the histogram cut behind its first `cut` bins."""
    kept = counts[:cut].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[cut:].sum()
    if not kept.any():
        return np.inf
    starts = np.arange(_LEVELS) * cut // _LEVELS
    filled = reference > 0
    level = np.repeat(np.arange(_LEVELS), np.diff(np.append(starts, cut)))
    mass = np.add.reduceat(kept, starts) / np.maximum(np.add.reduceat(filled, starts, dtype=np.int64), 1)
    candidate = mass[level][filled]
    p, q = reference[filled] / reference.sum(), candidate / candidate.sum()
    # A level may be empty in Q where P has the mass that was cut off; a little mass keeps the divergence finite.
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))


def _finite(samples: Array) -> Array:
    elements = np.ravel(samples).astype(np.float32, copy=False)
    return elements[np.isfinite(elements)]


OBSERVERS: Mapping[str, RangeSolver] = MappingProxyType(
    {"minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}
)
"""Name in a recipe -> solver."""
