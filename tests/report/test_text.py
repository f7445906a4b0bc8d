import dataclasses

import pytest
import yaml

from qcompile.contract import GIVE_MORE_DATA, NO_DATA, Finding
from qcompile.errors import ArtifactError
from qcompile.recipe import Recipe
from qcompile.recipe_patterns import selects
from qcompile.report import LayerReport, PassReport, Report
from qcompile.report.budget import BudgetReport
from qcompile.report.text import headlines, human_bytes, measures, promise, warnings
from qcompile.session import Agreement
from qcompile.untouched import QUANTIZED_ALREADY


def quantized(name: str, sqnr_db: float | None) -> LayerReport:
    return LayerReport(name, "Linear", "quantized", sqnr_db=sqnr_db)


FINE = [quantized("fc", 40.0)]
KEPT = LayerReport("fc", "Linear", "kept", "no kernel")
ALREADY = LayerReport("fc", "Linear", "kept", QUANTIZED_ALREADY)


def test_the_summary_begins_with_speed_size_and_accuracy():
    report = Report(
        model="encoder",
        recipe="w8a8-static",
        backend="openvino",
        target="avx2",
        latency={"float_ms": 10.0, "quantized_ms": 4.0},
        size={"float_bytes": 4_000_000, "quantized_bytes": 1_000_000},
        accuracy={"logits": {"cosine": 0.99912345}, "measured on": "calibration samples"},
        layers=[quantized("a", 30.0), quantized("b", 34.0), LayerReport("c", "Conv", "kept", "one channel")],
        channel_scales={"folded": 4, "explicit": 0},
    )
    assert report.summary().splitlines()[:8] == [
        "encoder · w8a8-static · openvino · avx2",
        "  latency   10 ms -> 4 ms, 2.50 times as fast as float",
        "  size      4.0 MB -> 1.0 MB, 4.00 times smaller",
        "  accuracy  logits, cosine to float 0.99912, on calibration samples",
        "  layers    2 quantized, 1 kept of 3",
        "  SQNR      each layer alone: median 32.0 dB, worst 30.0 dB",
        "  scales    4 folded, 0 explicit",
        "",
    ]


def test_the_summary_names_the_culprits_first_and_the_lines_that_keep_them_float():
    report = Report(layers=[quantized("good", 40.0), quantized("bad [0]", 10.0), quantized("worst", 2.0)])
    lines = report.summary().splitlines()
    rows = [line.split()[0] for line in lines if "Linear" in line]
    assert rows == ["2.0", "10.0", "40.0"]
    assert lines[-3:] == ["ignore:", "- worst", "- bad [0]"]
    assert "  warning: 2 quantized layers are below 20 dB; the worst is worst" in lines


def test_layers_are_suggested_by_what_ignoring_them_brings():
    gains = {"harmless": 0.0, "most": 12.25, "some": 0.5}
    layers = [LayerReport(name, "Linear", "quantized", sqnr_db=9.0, gain_db=gain) for name, gain in gains.items()]
    lines = Report(layers=layers).summary().splitlines()
    assert lines[-3:] == [
        "ignore:",
        "- most  # alone: +12.2 dB at the outputs",
        "- some  # alone: +0.5 dB at the outputs",
    ]
    assert yaml.safe_load("\n".join(lines[-3:])) == {"ignore": ["most", "some"]}
    assert "  ignore    would bring most for most: 12.2 dB for the outputs" in lines
    assert next(line.split() for line in lines if "Linear" in line) == ["9.0", "12.2", "Linear", "most"]


def test_lines_for_a_recipe_are_never_wrapped():
    names = [f"{'block.' * 40}{index}" for index in range(2)]
    lines = Report(layers=[quantized(name, 1.0) for name in names]).summary().splitlines()
    assert lines[-2:] == [f"- {name}" for name in names]


ODD = [
    "re:head.*",
    "re:[",
    "a[0].fc",
    "/block/fc: MatMul #1",
    "'it''s'",
    '"q"',
    "null",
    "3",
    "- x",
    "a\nb",
    "a\u2028\tb",
    "é ",
    "*",
]


@pytest.mark.parametrize("name", ODD)
def test_lines_for_a_recipe_select_the_layer_whatever_it_is_called(name):
    summary = Report(layers=[quantized(name, 1.0), quantized("other", 2.0)]).summary()
    patterns = yaml.safe_load("ignore:" + summary.rpartition("ignore:")[2])["ignore"]
    assert Recipe.from_name("w8a8-static", ignore=patterns).ignore == tuple(patterns)
    assert [selects([pattern], [name]) for pattern in patterns] == [True, False]
    assert [selects([pattern], ["other", "header", "[", "head"]) for pattern in patterns] == [False, True]


BUDGET = BudgetReport("top1", 0.01, "absolute", 0.8, 0.7, 0.795, True, ("head",), 5, 3.0)


def test_the_summary_says_how_the_budget_ended():
    layers = [quantized("fc", 30.0), LayerReport("head", "Linear", "kept", "it stays float for the accuracy budget")]
    lines = Report(layers=layers, budget=BUDGET).summary().splitlines()
    told = "  budget    met: top1 0.8 -> 0.795, at most 0.01 less; 1 layer kept float for it, 5 trials"
    assert told in lines
    assert lines[-2:] == ["ignore:", "- head"]
    assert not any("warning" in line for line in lines)


def test_a_search_that_ran_out_of_trials_says_so():
    told = dataclasses.replace(BUDGET, complete=False).headline()
    assert told == f"{BUDGET.headline()}, and no more were allowed: fewer layers may do"


def test_a_budget_that_is_not_met_is_a_warning():
    budget = dataclasses.replace(BUDGET, drop_type="relative", score=0.72, met=False, kept=("a", "b"))
    told = "top1 drops by 10% where 1% is allowed, and nor is it with all layers in float"
    assert warnings(Report(budget=budget)) == [f"warning: the accuracy budget is not met: {told}"]
    assert budget.headline() == "NOT met: top1 0.8 -> 0.72, at most 1% less; 2 layers kept float for it, 5 trials"
    nothing = dataclasses.replace(BUDGET, kept=(), trials=1).headline()
    assert nothing.endswith("no layer kept float for it, 1 trial")


def test_both_errors_of_a_layer_are_listed():
    layers = [LayerReport("fc", "Linear", "quantized", sqnr_db=30.0, accumulated_db=12.25), quantized("head", 40.0)]
    rows = [line.split() for line in Report(layers=layers).summary().splitlines() if "Linear" in line]
    assert rows == [["30.0", "12.2", "Linear", "fc"], ["40.0", "Linear", "head"]]


def test_layers_that_stayed_float_are_counted_by_reason():
    kept = [LayerReport(f"fc{index}", "Linear", "kept", "K is too large [int32]") for index in range(3)]
    text = Report(layers=[*kept, LayerReport("head", "Linear", "ignored", "ignore: head")]).summary()
    assert [line.split()[:2] for line in text.splitlines() if "fc0" in line or "head" in line] == [
        ["3", "kept"],
        ["1", "ignored"],
    ]
    assert "K is too large [int32]" in text


def test_only_the_worst_of_many_layers_are_listed_and_names_are_whole():
    layers = [quantized(f"model.layers.{index}.{'block.' * 20}fc", 20.0 + index) for index in range(40)]
    text = Report(layers=layers).summary()
    assert "".join(text.split()).count("block.") == 12 * 20
    assert max(map(len, text.splitlines())) <= 110


def test_an_empty_report_is_a_summary_too():
    assert Report().summary() == "model · recipe · backend\n"


@pytest.mark.parametrize(
    ("report", "warned"),
    [
        (Report(layers=FINE, latency={"float_ms": 4.0, "quantized_ms": 4.2}), "slower than float"),
        (Report(layers=FINE, latency={"float_ms": 4.0, "quantized_ms": 5.0}), "5 ms where float takes 4 ms"),
        (Report(layers=[KEPT], latency={"float_ms": 4.0, "quantized_ms": 5.0}), None),
        (Report(layers=[ALREADY]), "it was compiled as it is"),
        (Report(layers=FINE, latency={"float_ms": 4.0, "quantized_ms": 3.9}), None),
        (Report(layers=FINE, size={"float_bytes": 10, "quantized_bytes": 10}), "larger than float"),
        (Report(layers=FINE, size={"float_bytes": 10, "quantized_bytes": 9}), None),
        (Report(latency={"float_ms": 4.0, "quantized_ms": 5.0}, size={"float_bytes": 9, "quantized_bytes": 10}), None),
        (Report(layers=[quantized("fc", 19.0)]), "1 quantized layer is below 20 dB; the worst is fc"),
        (Report(layers=[quantized("fc", 20.0)]), None),
        (
            Report(layers=FINE, findings=[Finding("gptq", "kept", f"runs as rtn: {NO_DATA}")]),
            "gptq runs as rtn: there is no calibration data",
        ),
        (Report(layers=FINE, findings=[Finding("smooth", "kept", f"left out: {NO_DATA}")]), None),
        (
            Report(layers=[dataclasses.replace(quantized("fc", 20.0), reason=f"calibrated: {GIVE_MORE_DATA}")]),
            "fitted to fewer positions than inputs, layers: 1; give more data",
        ),
    ],
)
def test_warnings(report, warned):
    lines = warnings(report)
    assert len(lines) == (warned is not None)
    assert warned is None or warned in lines[0]


def test_what_was_not_measured_is_not_claimed():
    assert headlines(Report(latency={"quantized_ms": 3.0}, size={"float_bytes": 3})) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (90_400_000, "90.4 MB"),
        (1.5e9, "1.50 GB"),
        (2.5e13, "25000.00 GB"),
    ],
)
def test_sizes_for_people(count, text):
    assert human_bytes(count) == text


def test_measures_are_named_in_words_and_outputs_as_the_user_names_them():
    report = Report(accuracy={"sqnr_db": 25.0, "cosine": {"last_hidden_state": 1.0}, "measured on": "made-up inputs"})
    assert measures(report) == [("SQNR of the outputs in dB", 25.0), ("cosine to float, last_hidden_state", 1.0)]


def test_promises_in_words():
    assert promise(PassReport("a", 1.0, max_error=1e-6)) == "exact: largest error 1.0e-06 of the range"
    assert promise(PassReport("a", 1.0, keeps="lossy", sqnr_db=31.25)) == "lossy: 31.2 dB"
    assert promise(PassReport("a", 1.0)) == "exact, not measured by itself"


def test_passes_that_changed_nothing_are_only_counted():
    passes = [PassReport("FoldScales()", 0.25, max_error=0.0), PassReport("FuseGelu()", 0.01, modified=False)]
    text = Report(passes=passes).summary()
    assert "0.25  FoldScales  exact" in text
    assert "1 more changed nothing" in text
    assert "FuseGelu" not in text


def test_the_summary_says_how_far_the_artifact_is_from_the_reference_or_why_nobody_knows():
    found = [
        Agreement("openvino", ("a", "b"), 0.75, 0.01, "b"),
        Agreement("onnxruntime, graph optimizations disabled", (), 0.0, 0.0),
    ]
    assert headlines(Report(agreements=found)) == [
        "verified  openvino: 2 values and the outputs within 0.75 quantization steps (b)",
        "verified  onnxruntime, graph optimizations disabled: the outputs within 0 quantization steps",
    ]
    assert headlines(Report(not_compared="[the reference] is out")) == [
        "verified  not compared with the reference of its arithmetic: [the reference] is out"
    ]


def test_what_was_kept_and_is_no_layer_is_listed():
    findings = [
        Finding("mask", "kept", "its table [0] is computed"),
        Finding("mask", "kept", "its table [0] is computed"),
        Finding("fc", "kept", "not smoothed"),
        Finding("norm", "folded", "into fc"),
    ]
    text = Report(layers=FINE, findings=findings).summary()
    assert text.count("its table [0] is computed") == 1
    assert "not smoothed" not in text
    assert "into fc" not in text


def test_what_is_no_number_is_said_and_noise_is_no_loss():
    unknown = Report(layers=FINE, accuracy={"sqnr_db": float("nan")})
    assert any("NaN" in line for line in warnings(unknown))
    assert not any("NaN" in line for line in warnings(dataclasses.replace(unknown, accuracy={"sqnr_db": 30.0})))
    slow = [Report(layers=FINE, latency={"float_ms": 1.0, "quantized_ms": ms}) for ms in (1.01, 1.03)]
    assert ["slower" in "".join(warnings(report)) for report in slow] == [False, True]


def test_what_was_not_compared_is_named():
    agreement = Agreement("runtime", ("a",), 1.0, 0.1, "a", ("place (int64, 50% of it equal)",))
    assert "; not compared: place (int64, 50% of it equal)" in "".join(headlines(Report(agreements=[agreement])))


def test_a_page_has_the_name_of_a_page(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="html"):
        Report().save_html(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"


def test_a_name_that_several_layers_have_is_suggested_once():
    report = Report(layers=[LayerReport("part", "Linear", "quantized", sqnr_db=each) for each in (3.0, 5.0)])
    assert report.summary().count("- part") == 1


@pytest.mark.parametrize("worst", [0.5, float("nan")])
def test_of_many_outputs_the_first_and_the_worst_other_are_told(worst: float) -> None:
    cosines = {"logits": 0.25, "present.0.key": 1.0, "present.0.value": worst, "present.1.key": 0.75}
    report = Report(model="decoder", accuracy={"sqnr_db": 9.0, "cosine": cosines})
    assert sum("cosine to float" in line for line in headlines(report)) == 4
    report.accuracy["cosine"] = {**cosines, "present.1.value": 0.8}
    assert [line for line in headlines(report) if line.startswith("accuracy")] == [
        "accuracy  SQNR of the outputs in dB 9",
        "accuracy  cosine to float, logits 0.25",
        f"accuracy  cosine to float, worst of the 4 others: present.0.value {worst:.5g}",
    ]
    assert len(measures(report)) == 6
