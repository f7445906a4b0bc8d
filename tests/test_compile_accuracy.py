"""A budget of accuracy: the fewest layers stay float, the best that was found is returned, and the report says all."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
import typer.testing

import qcompile
from qcompile import compile_accuracy
from qcompile.backends import get
from qcompile.cli import app
from qcompile.compile_accuracy import KEPT_REASON
from qcompile.compile_selection import ignored_layers
from qcompile.errors import RecipeError
from qcompile.graph import layer_name
from qcompile.verify_gains import output_gains
from tests.report.test_culprits import BLOCKS, CHANNELS, PLANTED, model_of_blocks

PLAIN = qcompile.Recipe("no-smoothing", steps=("insert_qdq",))
CULPRIT = f"{PLANTED}.linear"
EVERY_LAYER = [f"{block}.linear" for block in range(BLOCKS)]
OUTPUT = np.random.default_rng(7).standard_normal((CHANNELS, 10))


def samples(count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"input": generator.standard_normal((2, 8, CHANNELS)).astype(np.float32)} for _ in range(count)]


@functools.cache
def traced(planted: int | None) -> ir.Model:
    return qcompile.trace(model_of_blocks(planted), example_inputs=(torch.zeros(2, 8, CHANNELS),))


class Accuracy:
    """Part of held-out samples that fall into the class that the float model gives them; remembers what it found."""

    def __init__(self, planted: int | None) -> None:
        self.feeds, self.found = samples(8, seed=1), []
        self.labels = self.classes(get("onnxruntime").open_session(traced(planted)).run)

    def classes(self, run) -> np.ndarray:
        (name,) = run(self.feeds[0])
        return np.concatenate([(run(feed)[name] @ OUTPUT).argmax(-1).ravel() for feed in self.feeds])

    def __call__(self, run) -> float:
        self.found.append(float(np.mean(self.classes(run) == self.labels)))
        return self.found[-1]


def compiled(accuracy, planted: int | None = PLANTED, recipe=PLAIN, **options) -> qcompile.Artifact:
    settings = {"calibration": samples(), "verify": False} | options
    return qcompile.compile(traced(planted), recipe, accuracy=accuracy, **settings)


def float_layers(artifact: qcompile.Artifact) -> list[str]:
    return [layer.name for layer in artifact.report.layers if layer.action == "kept"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exactly_the_planted_bad_layer_stays_float(backend):
    pytest.importorskip(backend)
    metric = Accuracy(PLANTED)
    artifact = compiled({"max_drop": 0.03, "metric": metric}, backend=backend)
    budget = artifact.report.budget
    assert float_layers(artifact) == list(budget.kept) == [CULPRIT]
    assert budget.met
    assert metric.found == [1.0, budget.quantized_score, budget.score], "nothing is measured again"
    assert budget.quantized_score < 0.97 <= budget.score
    assert budget.trials == 2
    assert metric(artifact.run) == budget.score, "what was tried is what was written"
    assert artifact.manifest.recipe["ignore"] == [CULPRIT]
    assert qcompile.load(artifact.path).report == artifact.report


def test_it_is_what_the_passes_make_when_they_ignore_the_layer():
    held, ignored = compiled({"max_drop": 1e-3}, verify=True), compiled(None, ignore=CULPRIT, verify=True)
    np.testing.assert_array_equal(*(next(iter(each.run(samples(1)[0]).values())) for each in (held, ignored)))
    ratios = [{layer.name: layer.accumulated_db for layer in each.report.layers} for each in (held, ignored)]
    assert ratios[0] == pytest.approx(ratios[1])
    assert held.manifest.recipe == ignored.manifest.recipe


def test_without_a_metric_the_outputs_are_compared_with_those_of_the_float_model():
    budget = compiled(qcompile.AccuracyBudget(1e-3)).report.budget
    assert (budget.metric, budget.float_score, budget.kept) == ("cosine to float", pytest.approx(1), (CULPRIT,))
    assert budget.quantized_score < 1 - 1e-3 <= budget.score


def test_a_model_that_holds_the_budget_is_quantized_whole_and_its_layers_are_not_ranked(monkeypatch):
    monkeypatch.setattr(compile_accuracy, "output_gains", None)
    artifact = compiled({"max_drop": 1e-3}, planted=None)
    assert float_layers(artifact) == []
    assert (artifact.report.budget.met, artifact.report.budget.trials) == (True, 1)
    assert "ignore" not in artifact.manifest.recipe


def test_where_nothing_may_be_lost_everything_stays_float():
    (feed,) = samples(1)
    exact = get("onnxruntime").open_session(traced(PLANTED)).run(feed)

    def metric(run) -> float:
        return -max(float(np.abs(run(feed)[name] - array).max()) for name, array in exact.items())

    artifact = compiled({"max_drop": 0, "metric": metric}, verify=True)
    assert float_layers(artifact) == EVERY_LAYER
    assert artifact.report.budget.met
    assert artifact.report.accuracy["sqnr_db"] > 100


def test_where_trials_run_out_everything_stays_float_and_the_budget_is_met():
    artifact = compiled({"max_drop": 0.0, "max_trials": 2})
    budget = artifact.report.budget
    assert (budget.met, budget.trials, budget.complete) == (True, 3, False)
    assert float_layers(artifact) == list(budget.kept) == EVERY_LAYER
    assert budget.score == budget.float_score > budget.quantized_score
    assert "no more were allowed: fewer layers may do" in artifact.report.summary()


def test_the_best_that_was_found_is_returned_where_not_even_float_layers_meet_the_budget():
    scores = iter([1.0, 0.5, 0.7, 0.6, 0.6, 0.6, 0.6])
    artifact = compiled({"max_drop": 0.0, "metric": lambda _run: next(scores)})
    budget = artifact.report.budget
    assert (budget.met, budget.score, budget.kept) == (False, 0.7, (CULPRIT,))
    assert float_layers(artifact) == [CULPRIT]
    assert "warning: the accuracy budget is not met" in artifact.report.summary()


@pytest.mark.parametrize("score", [0.5, 2.0, math.inf])
def test_a_metric_that_does_not_drop_keeps_nothing_float(score):
    scores = iter([0.5, score])
    artifact = compiled({"max_drop": 0.0, "metric": lambda _run: next(scores)})
    assert (artifact.report.budget.met, artifact.report.budget.score, float_layers(artifact)) == (True, score, [])


def test_a_metric_that_is_no_number_for_anything_quantized_is_not_met_by_it():
    (feed,) = samples(1)
    exact = get("onnxruntime").open_session(traced(PLANTED)).run(feed)

    def metric(run) -> float:
        outputs = run(feed)
        return 1.0 if all(np.allclose(outputs[name], exact[name], atol=1e-5) for name in exact) else math.nan

    artifact = compiled({"max_drop": 0.5, "metric": metric})
    budget = artifact.report.budget
    assert (budget.met, budget.score, float_layers(artifact)) == (True, 1.0, EVERY_LAYER)
    assert math.isnan(budget.quantized_score)


def test_a_metric_that_fails_later_is_named():
    scores = iter([1.0])
    with pytest.raises(RecipeError, match="metric: it raised StopIteration"):
        compiled({"max_drop": 0.5, "metric": lambda _run: next(scores)})


def test_a_layer_that_is_called_like_a_pattern_is_kept_by_its_name():
    model = traced(PLANTED).clone()
    for node in model.graph:
        node.name = f"re:{layer_name(node)}" if node.op_type == "MatMul" else node.name
        node.metadata_props.pop("pkg.torch.onnx.name_scopes", None)
    artifact = qcompile.compile(model, PLAIN, calibration=samples(), verify=False, accuracy={"max_drop": 1e-3})
    assert float_layers(artifact) == list(artifact.report.budget.kept) == [f"re:{CULPRIT}"]
    again = qcompile.Recipe.from_data(artifact.manifest.recipe)
    assert ignored_layers(model, again) == {f"re:{CULPRIT}"}


def test_calibration_and_smoothing_are_not_done_again():
    def stages(accuracy) -> list[str]:
        told = []
        settings = {"recipe": "w8a8-static", "progress": lambda stage, part: told.append((stage, part))}
        compiled(accuracy, **settings)
        return [stage for stage, part in told if not stage.startswith("holding")]

    assert stages({"max_drop": 1e-12, "max_trials": 5}) == stages(None)


def test_a_budget_holds_without_calibration_and_verification():
    metric = Accuracy(PLANTED)
    options = {"recipe": "w8a8-dynamic", "calibration": None}
    artifact = compiled({"max_drop": 0.02, "metric": metric}, **options)
    assert artifact.report.budget.met
    assert artifact.report.budget.score == metric(artifact.run) >= 0.98


def test_a_recipe_that_quantizes_nothing_needs_one_trial():
    budget = compiled({"max_drop": 0.01}, recipe="float").report.budget
    assert (budget.met, budget.trials, budget.kept, budget.score) == (True, 1, (), budget.float_score)


@pytest.mark.parametrize(
    ("accuracy", "options", "message"),
    [
        ({"max_drop": 0.01, "metric": lambda _run: math.nan}, {}, "metric: it is nan for the float model"),
        ({"max_drop": 0.01}, {"recipe": qcompile.Recipe("r", ("insert_qdq", "fold_scales"))}, "behind those that"),
        ({"max_drop": 2, "drop": 1}, {}, "there is no such key"),
    ],
)
def test_what_cannot_be_held_is_refused(accuracy, options, message):
    with pytest.raises(RecipeError, match=message):
        compiled(accuracy, **options)


def test_without_any_data_a_metric_is_asked_for():
    with pytest.raises(RecipeError, match="no inputs on which outputs could be compared"):
        compiled({"max_drop": 0.01}, recipe="w8a8-dynamic", calibration=None)


def test_the_worst_layers_are_ranked_by_what_ignoring_them_brings(monkeypatch):
    monkeypatch.setattr(compile_accuracy, "WEIGHING_SHARE", math.inf)
    planted, mended = compiled(None, verify=True), compiled(None, ignore=CULPRIT, verify=True)
    gains = {layer.name: layer.gain_db for layer in planted.report.layers}
    assert set(gains) == set(EVERY_LAYER)
    assert planted.report.ranked_layers()[0].name == max(gains, key=gains.__getitem__) == CULPRIT
    # OpenVINO or ONNX Runtime, with or without its optimizations: the same to a tenth of a dB.
    promised = planted.report.accuracy["sqnr_db"] + gains[CULPRIT]
    assert mended.report.accuracy["sqnr_db"] == pytest.approx(promised, abs=0.5)
    assert f"- {CULPRIT}  # alone: {gains[CULPRIT]:+.1f} dB at the outputs" in planted.report.summary()
    assert [layer.gain_db for layer in mended.report.layers if layer.name == CULPRIT] == [None]


def test_reasons_are_in_the_report():
    layers = {layer.name: layer for layer in compiled({"max_drop": 1e-3}).report.layers}
    assert (layers[CULPRIT].reason, layers[CULPRIT].sqnr_db, layers[CULPRIT].scheme) == (KEPT_REASON, None, "")


def test_the_command_line_takes_a_budget(tmp_path):
    ir.save(traced(PLANTED), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", input=np.concatenate([feed["input"] for feed in samples()]))
    PLAIN.to_yaml(tmp_path / "plain.yaml")
    options = ["-r", tmp_path / "plain.yaml", "-c", tmp_path / "data.npz", "-o", tmp_path / "out", "--no-verify"]
    command = ["compile", tmp_path / "model.onnx", *options, "--max-drop", "0.001", "--json"]
    result = typer.testing.CliRunner().invoke(app, list(map(str, command)))
    assert json.loads(result.stdout)["report"]["budget"]["kept"] == [CULPRIT]
    refused = typer.testing.CliRunner().invoke(app, list(map(str, [*command[:-2], "-1"])))
    assert refused.exit_code == 2


def test_layers_of_a_large_model_are_not_weighed(monkeypatch):
    monkeypatch.setattr(compile_accuracy, "WEIGHING_SHARE", math.inf)
    monkeypatch.setattr(compile_accuracy, "_WEIGHED_BYTES", 4 * BLOCKS * CHANNELS**2 - 1)
    assert {layer.gain_db for layer in compiled(None, verify=True).report.layers} == {None}


class WithHarmlessBranch(torch.nn.Module):
    """The planted model, and a layer that is worse by itself, of which next to nothing reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = model_of_blocks(PLANTED)
        self.harmless = model_of_blocks(PLANTED)[PLANTED]
        with torch.no_grad():
            for parameter in (self.harmless.norm.weight, self.harmless.norm.bias):
                parameter[[3, 40]] *= 50
            self.harmless.linear.weight[:, [3, 40]] /= 50

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.blocks(input) + 1e-6 * self.harmless(input)


def test_layers_are_kept_by_what_they_cost_the_outputs_not_by_their_own_error():
    model = qcompile.trace(WithHarmlessBranch().eval(), example_inputs=(torch.zeros(2, 8, CHANNELS),))
    report = qcompile.compile(model, PLAIN, calibration=samples(), verify=False, accuracy={"max_drop": 1e-3}).report
    assert report.ranked_layers()[0].name == "harmless.linear"
    assert report.budget.kept == (f"blocks.{CULPRIT}",)
    assert report.budget.trials == 2


def test_the_pass_that_quantized_has_the_error_of_the_model_that_is_written():
    report = compiled({"max_drop": 0.03, "metric": Accuracy(PLANTED)}, verify=True).report
    assert report.budget.kept == (CULPRIT,)
    (measured,) = [entry.sqnr_db for entry in report.passes if entry.sqnr_db is not None]
    assert measured == pytest.approx(report.accuracy["sqnr_db"], abs=0.5)


def test_no_more_layers_are_ranked_than_a_number(monkeypatch):
    asked = []

    def gains(quantized, before, candidates, *others, **options):
        asked.append(len(candidates))
        return output_gains(quantized, before, candidates, *others, **options)

    monkeypatch.setattr(compile_accuracy, "output_gains", gains)
    monkeypatch.setattr(compile_accuracy, "MOST_RANKED", 2)
    assert compiled({"max_drop": 0.03, "metric": Accuracy(PLANTED)}).report.budget.kept == (CULPRIT,)
    assert asked == [2]
