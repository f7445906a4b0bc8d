"""Which layers make an artifact slower than float, as far as they were measured."""

import pytest

from qcompile.report import LayerReport, Report
from qcompile.report.forms import FormReport
from qcompile.report.slower import SHOWN, culprits_of_time, slower_layers
from qcompile.report.text import warnings
from qcompile.untouched import QUANTIZED_ALREADY

SLOWER = {"float_ms": 4.0, "quantized_ms": 5.0}


def layer(name: str, quantized_ms: float | None, float_ms: float | None, action="quantized") -> LayerReport:
    return LayerReport(name, "Conv", action, quantized_ms=quantized_ms, float_ms=float_ms)


LAYERS = [layer("a", 0.3, 0.2), layer("b", 0.9, 0.1), layer("c", 0.1, 0.4), layer("d", None, None)]


def test_the_layers_that_lose_most_come_first():
    """Of layers of one name the times are those of all together."""
    report = Report(layers=[*LAYERS, LAYERS[0], layer("kept", 9.0, 1.0, "kept")])
    assert [each.name for each in slower_layers(report)] == ["b", "a"]


def test_a_model_that_is_slower_names_the_layers_that_are():
    told = "slower quantized are: b 0.9 ms against 0.1 in float; a 0.3 ms against 0.2 in float"
    slower = "warning: the quantized model is slower than float on this runtime: 5 ms where float takes 4 ms"
    assert warnings(Report(layers=LAYERS, latency=SLOWER)) == [f"{slower}; {told}"]


def test_many_are_counted():
    report = Report(layers=[layer(f"layer{index}", 2.0, 1.0) for index in range(SHOWN + 2)])
    assert culprits_of_time(report).endswith(f"layer{SHOWN - 1} 2 ms against 1 in float and 2 more")


def test_where_no_layer_is_slower_by_itself_that_is_said():
    report = Report(layers=LAYERS[2:])
    told = "1 of 2 quantized layers were timed, and none is slower by itself: what quantizing adds around them is"
    assert culprits_of_time(report) == told


@pytest.mark.parametrize(
    ("not_timed", "told"),
    [('tune="none"; do that', 'tune="none"; do that'), ("", "none of them is of a kind that is timed")],
)
def test_where_nothing_was_timed_it_says_why(not_timed, told):
    report = Report(layers=[LAYERS[3]], not_timed=not_timed)
    assert culprits_of_time(report) == f"its layers were not timed: {told}"


def test_a_model_that_is_not_slower_names_nobody():
    assert warnings(Report(layers=LAYERS, latency={"float_ms": 5.0, "quantized_ms": 5.05})) == []


@pytest.mark.parametrize(("forms", "not_timed", "told"), [(1, "why", True), (0, "why", False), (1, "", False)])
def test_of_a_model_that_came_quantized_it_is_said_where_no_form_was_timed(forms, not_timed, told):
    came = LayerReport("fc", "Linear", "kept", QUANTIZED_ALREADY)
    kinds = [FormReport("weight in blocks", "in blocks", ("fc",))] * forms
    report = Report(layers=[came], latency=SLOWER, forms=kinds, not_timed=not_timed)
    assert any("slower" in line and line.endswith(": why") for line in warnings(report)) is told
