import dataclasses
import json
import math

import numpy as np
import pytest

from qcompile.contract import Finding
from qcompile.report import ActivationRange, LayerReport, PassReport, Report
from qcompile.report.budget import BudgetReport
from qcompile.report.forms import FormReport
from qcompile.session import Agreement


def layer(name: str, action="quantized", sqnr_db=None, reason="") -> LayerReport:
    return LayerReport(name, "Linear", action, reason, sqnr_db, (4, 8), "uint8 × int8", math.inf)


def full_report() -> Report:
    return Report(
        model="encoder",
        recipe="w8a8-static",
        backend="onnxruntime",
        target="avx2",
        layers=[
            dataclasses.replace(layer("fine", sqnr_db=41.0), quantized_ms=0.5, float_ms=2.0),
            layer("perfect", sqnr_db=math.inf),
            layer("head", "ignored"),
        ],
        channel_scales={"folded": 4, "explicit": 1},
        latency={"float_ms": 11.0, "quantized_ms": 4.0},
        accuracy={"logits": {"sqnr_db": math.inf, "cosine": 0.999}},
        size={"float_bytes": 4000, "quantized_bytes": 1000},
        passes=[PassReport("fold_scales()", 0.25, True, "exact", max_error=1e-6)],
        activation_ranges=[ActivationRange("fine", (1.0, 2.0), (1.0, 1.5), 2)],
        findings=[Finding("fine", "folded", "into the norm")],
        budget=BudgetReport("top1", 0.01, "relative", 0.8, math.nan, -math.inf, False, ("head", "fc"), 7, 1.5),
        agreements=[Agreement("openvino", ("a", "b"), math.inf, 0.25, "b")],
        not_compared="",
        forms=[FormReport("addition", "apart", ("norm", "head"), ((1, 8), (1, 8)), {"apart": 0.5, "fused": 1.0})],
        not_timed="the model is small",
    )


def test_a_report_survives_json():
    text = json.dumps(full_report().to_dict(), allow_nan=False)
    assert repr(Report.from_dict(json.loads(text))) == repr(full_report())  # NaN is not equal to itself


def test_numpy_numbers_become_numbers():
    report = Report(latency={"float_ms": np.float32(1.5)}, size={"float_bytes": np.int64(3)})
    assert json.loads(json.dumps(report.to_dict()))["latency"] == {"float_ms": 1.5}


@pytest.mark.parametrize("data", [{}, {"layers": 3}, {**Report().to_dict(), "unknown": 1}])
def test_what_is_no_report_is_refused(data):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Report.from_dict(data)


def test_layers_are_ranked_worst_first_then_those_that_stayed_float():
    layers = [
        layer("ignored", "ignored"),
        layer("kept", "kept", sqnr_db=3.0),
        layer("unmeasured"),
        layer("good", sqnr_db=40.0),
        layer("bad", sqnr_db=12.0),
        layer("broken", sqnr_db=-3.0),
    ]
    ranked = [item.name for item in Report(layers=layers).ranked_layers()]
    assert ranked == ["broken", "bad", "good", "unmeasured", "kept", "ignored"]


def test_what_ignoring_a_layer_would_bring_ranks_before_its_own_error():
    gains = {"harmless": 0.0, "helps": 3.0, "helps most": 12.0}
    layers = [dataclasses.replace(layer(name, sqnr_db=5.0), gain_db=gain) for name, gain in gains.items()]
    ranked = Report(layers=[layer("unmeasured", sqnr_db=1.0), *layers]).ranked_layers()
    assert [item.name for item in ranked] == ["helps most", "helps", "harmless", "unmeasured"]


def test_culprits_are_quantized_layers_whose_error_is_above_a_tenth():
    layers = [layer("edge", sqnr_db=20.0), layer("bad", sqnr_db=19.9), layer("worse", sqnr_db=1.0), layer("none")]
    layers.append(layer("kept", "kept", sqnr_db=1.0))
    assert [item.name for item in Report(layers=layers).culprits()] == ["worse", "bad"]


@pytest.mark.parametrize("channels", [1, 7, 192, 193, 1000, 4096])
def test_a_range_is_thinned_out_and_keeps_every_outlier(channels):
    values = np.random.default_rng(0).uniform(0.5, 1.0, channels).astype(np.float32)
    for position in {0, channels // 3, channels - 1}:
        outliers = values.copy()
        outliers[position] = 77.0
        thinned = ActivationRange.of("fc", outliers, values, points=192)
        assert len(thinned.before) == len(thinned.after) == min(channels, 192)
        assert max(thinned.before) == 77.0
        assert max(thinned.after) == pytest.approx(values.max(), rel=1e-3)
        assert thinned.channels == channels


def test_a_range_of_few_channels_keeps_each_of_them():
    thinned = ActivationRange.of("fc", np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert (thinned.before, thinned.after) == ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0))


def test_the_peak_ratio_says_how_much_flatter_the_channels_became():
    assert ActivationRange("fc", (1.0, 1.0, 8.0), (1.0, 1.0, 2.0)).peak_ratio == 4.0
    assert ActivationRange("fc", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)).peak_ratio == 1.0
    assert ActivationRange("fc", (), ()).peak_ratio == 1.0


@pytest.mark.parametrize("name", ["inf", "-inf", "nan"])
def test_a_layer_that_is_called_like_a_number_keeps_its_name(name):
    report = Report(
        layers=[LayerReport(name, "Linear", "quantized", name, math.inf)], findings=[Finding(name, "kept", name)]
    )
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy": {"sqnr_db": "high"}},
        {"accuracy": {"cosine": {"y": [1.0]}}},
        {"latency": {"float_ms": "fast"}},
        {"size": {"float_bytes": True}},
        {"model": 3},
        {"target": ["avx2"]},
        {"layers": [{"name": "fc", "operator": "Linear", "action": "quantized", "sqnr_db": "high"}]},
        {"layers": [{"name": "fc", "operator": "Linear", "action": "sold"}]},
        {"layers": [{"name": "fc", "operator": "Linear", "action": "kept", "shape": ["8"]}]},
        {"agreements": [{"runtime": "r", "values": ["v"], "max_steps": [1.0], "rms_steps": 0.5}]},
    ],
    ids=str,
)
def test_fields_of_other_types_are_refused(wrong):
    with pytest.raises((TypeError, ValueError)):
        Report.from_dict({**Report().to_dict(), **wrong})
