import math
import re

import pytest

from qcompile.report import ActivationRange, LayerReport
from qcompile.report.charts import depth_chart, nice_step, range_charts, steps


def layer(name: str, sqnr_db: float | None) -> LayerReport:
    return LayerReport(name, "Linear", "quantized", sqnr_db=sqnr_db)


@pytest.mark.parametrize(
    ("span", "count", "step"), [(50, 5, 10), (51, 5, 20), (1, 5, 0.2), (0.003, 3, 0.001), (70, 5, 20), (230, 5, 50)]
)
def test_steps_of_an_axis_are_round_and_few(span, count, step):
    assert nice_step(span, count) == pytest.approx(step)


def test_layers_lie_from_left_to_right_and_higher_where_they_are_better():
    chart = depth_chart([layer("a", 10.0), layer("b", 30.0), layer("c", 20.0)])
    assert [dot.x for dot in chart.dots] == [16.67, 50.0, 83.33]
    first, second, third = (dot.alone for dot in chart.dots)
    assert first > third > second
    assert third == chart.threshold
    assert [dot.culprit for dot in chart.dots] == [True, False, False]


def test_the_accumulated_error_lies_on_the_same_axis():
    layers = [LayerReport("a", "Linear", "quantized", sqnr_db=40.0, accumulated_db=-20.0), layer("b", 40.0)]
    first, second = depth_chart(layers).dots
    assert (first.accumulated, second.accumulated) == (100.0, None)
    assert 0 <= first.alone < 50
    unmeasured = [LayerReport(name, "Linear", "quantized", accumulated_db=30.0) for name in "ab"]
    assert [(dot.alone, dot.culprit) for dot in depth_chart(unmeasured).dots] == [(None, False)] * 2


def test_every_dot_lies_between_the_outer_ticks():
    chart = depth_chart([layer("a", -12.0), layer("b", 71.0), layer("c", 5.0)])
    heights = [tick.y for tick in chart.ticks]
    assert (min(heights), max(heights)) == (0.0, 100.0)
    assert all(0 <= dot.alone <= 100 for dot in chart.dots)
    assert [float(tick.label) for tick in chart.ticks] == [-20, 0, 20, 40, 60, 80]


def test_what_has_no_place_on_the_axis_is_left_out():
    chart = depth_chart(
        [layer("a", None), layer("b", math.inf), layer("c", 30.0), layer("d", 40.0), layer("e", math.nan)]
    )
    assert [dot.layer.name for dot in chart.dots] == ["c", "d"]
    assert depth_chart([layer("a", 30.0)]) is None


def test_the_areas_of_a_layer_have_one_scale_and_the_height_of_their_channels():
    (chart,) = range_charts([ActivationRange("fc", (1.0, 4.0), (1.0, 2.0), 2)], 5)
    assert chart.before == "M0 100V75.0H50.00V0.0H100.00V100Z"
    assert chart.after == "M0 100V75.0H50.00V50.0H100.00V100Z"
    assert (chart.peak_before, chart.peak_after) == ("4", "2")


def test_the_layers_that_changed_most_come_first():
    ranges = [ActivationRange(str(peak), (1.0, 1.0, peak), (1.0, 1.0, 1.0), 3) for peak in (2.0, 50.0, 7.0)]
    assert [chart.range.layer for chart in range_charts(ranges, 2)] == ["50.0", "7.0"]


def test_an_activation_of_zeros_is_a_flat_line():
    (chart,) = range_charts([ActivationRange("fc", (0.0, 0.0), (0.0, 0.0), 2)], 1)
    assert set(re.findall(r"V([\d.]+)", chart.before)) == {"100.0", "100"}
    assert range_charts([ActivationRange("none", (), (), 0)], 1) == ()


def test_a_path_ends_at_the_right_edge():
    assert "H100.00V100Z" in steps([1.0] * 192, 1.0)
