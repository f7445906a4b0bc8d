"""Geometry of the charts of the page: numbers in, coordinates out. The template draws them.

Every chart lives in a box of 100 x 100 units that the browser stretches to the width of the screen, so that one page
serves a phone and a desk; lines keep their width (`vector-effect`) and words stay outside the drawing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeGuard

from qcompile.report.data import CULPRIT_DB, ActivationRange, LayerReport


@dataclasses.dataclass(frozen=True)
class Tick:
    """A mark on the vertical axis: distance from the top in percent, and its words."""

    y: float
    label: str


@dataclasses.dataclass(frozen=True)
class Dot:
    """A layer in the chart of SQNR by depth: heights of its error alone and accumulated, of those that are known."""

    x: float
    alone: float | None
    accumulated: float | None
    layer: LayerReport
    culprit: bool


@dataclasses.dataclass(frozen=True)
class DepthChart:
    """SQNR of the layers from the first to the last; `threshold` is the height of CULPRIT_DB."""

    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    threshold: float


@dataclasses.dataclass(frozen=True)
class RangeChart:
    """The picture of SmoothQuant (Xiao et al. 2022, figure 4) for one layer: two areas on one scale."""

    range: ActivationRange
    before: str
    after: str
    peak_before: str
    peak_after: str
    top: str


def nice_step(span: float, count: int) -> float:
    """Return the step of 1, 2 or 5 times a power of ten that divides `span` into at most `count` parts."""
    raw = span / count
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def depth_chart(layers: Sequence[LayerReport]) -> DepthChart | None:
    """Return the chart of the layers with an SQNR that is known and finite; None when there are fewer than two."""
    known = [layer for layer in layers if _is_number(layer.sqnr_db) or _is_number(layer.accumulated_db)]
    if len(known) < 2:
        return None
    values = [ratio for layer in known for ratio in (layer.sqnr_db, layer.accumulated_db) if _is_number(ratio)]
    low, high = min(0.0, *values), max(CULPRIT_DB * 1.5, *values)
    step = nice_step(high - low, 5)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step

    def height(ratio: float) -> float:
        return round(100 * (high - ratio) / (high - low), 2)

    def dot(index: int, layer: LayerReport) -> Dot:
        x = round(100 * (index + 0.5) / len(known), 2)
        culprit = _is_number(layer.sqnr_db) and layer.sqnr_db < CULPRIT_DB
        alone = height(layer.sqnr_db) if _is_number(layer.sqnr_db) else None
        accumulated = height(layer.accumulated_db) if _is_number(layer.accumulated_db) else None
        return Dot(x, alone, accumulated, layer, culprit)

    marks = [low + step * index for index in range(round((high - low) / step) + 1)]
    ticks = tuple(Tick(height(mark), f"{mark:g}") for mark in marks)
    return DepthChart(tuple(dot(*each) for each in enumerate(known)), ticks, height(CULPRIT_DB))


def _is_number(ratio: float | None) -> TypeGuard[float]:
    return ratio is not None and math.isfinite(ratio)


def range_charts(ranges: Sequence[ActivationRange], count: int) -> tuple[RangeChart, ...]:
    """Return the charts of the `count` activations that smoothing changed most, most changed first."""
    ranked = sorted((item for item in ranges if item.before), key=lambda item: -item.peak_ratio)
    return tuple(_range_chart(item) for item in ranked[:count])


def _range_chart(item: ActivationRange) -> RangeChart:
    highest = max(*item.before, *item.after)
    top = highest if highest > 0 else 1.0
    peaks = (f"{max(item.before):.3g}", f"{max(item.after):.3g}")
    return RangeChart(item, steps(item.before, top), steps(item.after, top), *peaks, f"{top:.3g}")


def steps(values: Sequence[float], top: float) -> str:
    """Return the SVG path of a filled bar chart without gaps; `top` is the value at the upper edge."""
    width = 100 / len(values)
    parts = [f"V{100 - 100 * value / top:.1f}H{(index + 1) * width:.2f}" for index, value in enumerate(values)]
    return f"M0 100{''.join(parts)}V100Z"
