"""Why an artifact is slower than float: the layers that take longer quantized, as tuning measured them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompile.report.data import LayerReport, Report

SHOWN = 8


def slower_layers(report: Report) -> list[LayerReport]:
    """Return the layers that are quantized although they take longer so, those first that lose most, each name once."""
    named = {layer.name: layer for layer in report.quantized_layers()}
    return sorted((layer for layer in named.values() if _lost_ms(layer) > 0), key=_lost_ms, reverse=True)


def _lost_ms(layer: LayerReport) -> float:
    """Milliseconds that quantizing the layer costs; 0 where it was not measured."""
    if layer.quantized_ms is None or layer.float_ms is None:
        return 0.0
    return layer.quantized_ms - layer.float_ms


def culprits_of_time(report: Report) -> str:
    """Return which layers make an artifact slower, as far as they were measured, and else what to do to find out."""
    timed = [layer for layer in report.quantized_layers() if layer.quantized_ms is not None]
    if not timed:
        reason = report.not_timed or "none of them is of a kind that is timed"
        return f"its layers were not timed: {reason}"
    slower = slower_layers(report)
    if not slower:
        counted = f"{len(timed)} of {len(report.quantized_layers())} quantized layers were timed"
        return f"{counted}, and none is slower by itself: what quantizing adds around them is"
    named = [f"{layer.name} {layer.quantized_ms:.2g} ms against {layer.float_ms:.2g} in float" for layer in slower]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"slower quantized are: {'; '.join(named[:SHOWN])}{more}"
