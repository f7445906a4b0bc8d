"""The report as one HTML page: no network, no script, readable on a phone, in dark and in light."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from qcompile.errors import MissingDependencyError
from qcompile.report import charts
from qcompile.report.data import CULPRIT_DB, MEASURED_ON, Report
from qcompile.report.text import decibel, human_bytes, ignore_lines, measures, number, promise, warnings

if TYPE_CHECKING:
    import jinja2

RANGES_SHOWN = 6
RANGES_FOLDED_AWAY = 18


def render(report: Report) -> str:
    """Return the page. Every text of the report is escaped.

    Raises:
        MissingDependencyError: jinja2 (extra `report`) is not installed.
    """
    ranges = charts.range_charts(report.activation_ranges, RANGES_SHOWN + RANGES_FOLDED_AWAY)
    return _template().render(
        report=report,
        layers=report.ranked_layers(),
        counts={action: sum(layer.action == action for layer in report.layers) for action in _ACTIONS},
        latency=_both(report.latency, "float_ms", "quantized_ms"),
        size=_both(report.size, "float_bytes", "quantized_bytes"),
        scales=(report.channel_scales.get("folded", 0), report.channel_scales.get("explicit", 0)),
        measures=measures(report),
        measured_on=report.accuracy.get(MEASURED_ON, ""),
        warnings=[line.removeprefix("warning: ") for line in warnings(report)],
        ignore=ignore_lines(report),
        gained=any(layer.gain_db is not None for layer in report.layers),
        depth=charts.depth_chart(report.layers),
        ranges=ranges[:RANGES_SHOWN],
        more_ranges=ranges[RANGES_SHOWN:],
        culprit_db=CULPRIT_DB,
    )


_ACTIONS = ("quantized", "kept", "ignored")


def _both(measures: Mapping[str, float], first: str, second: str) -> tuple[float, float] | None:
    values = measures.get(first), measures.get(second)
    return (values[0], values[1]) if values[0] and values[1] else None


def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "the HTML report", "jinja2 is not installed", "Run: pip install 'qcompile[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "human_bytes": human_bytes, "decibel": decibel}
    environment.globals |= {"promise": promise}
    text = resources.files("qcompile.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)
