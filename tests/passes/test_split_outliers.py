"""SplitOutliers: which channels go, the exact operators, LLM.int8()'s arithmetic against float64, and both backends."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.backends import BACKENDS, get
from qcompile.backends.fx import lower
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError, RecipeError
from qcompile.graph import constant_array
from qcompile.layers import float_linears
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.passes.split_outliers import PER_TOKEN, SplitOutliers
from qcompile.recipe import Recipe
from tests.passes.quantizable import operators, parse, run

CHANNELS, OUTLIERS = 48, [7, 30, 41]
TEXT = "g (float[n, 48] x) => (float[n, 6] y) { p = MatMul(x, w) y = Add(p, b) }"
SPLIT = ["Mul", "Gather", "MatMul", "Add", "MatMul", "Add"]
RNG = np.random.default_rng(0)
W, V = (RNG.standard_normal((CHANNELS, 6)).astype(np.float32) for _ in "wv")
B = np.arange(6, dtype=np.float32)


def inputs(outliers: list[int] = OUTLIERS, rows: int = 64) -> np.ndarray:
    x = np.clip(np.random.default_rng(1).standard_normal((rows, CHANNELS)), -4, 4).astype(np.float32)
    x[:, outliers] *= 60
    return x


def splitting(x: np.ndarray, **settings) -> SplitOutliers:
    calibrator = Calibrator([{"x": x}], ObserveChannels, get("onnxruntime").open_session)
    return SplitOutliers(calibrator=calibrator, **settings)


def split(model: ir.Model, x: np.ndarray, **settings) -> list:
    """Findings of the pass, after the checks that hold for every model: exact, and a second run changes nothing."""
    before = run(model, x)
    result = splitting(x, **settings)(model)
    np.testing.assert_allclose(run(model, x), before, rtol=0, atol=1e-6 * np.abs(before).max())
    now = [(node.op_type, node.name, [value.name for value in node.inputs]) for node in model.graph]
    assert result.modified == any(finding.action == "converted" for finding in result.findings)
    assert not splitting(x, **settings)(model).modified
    assert now == [(node.op_type, node.name, [value.name for value in node.inputs]) for node in model.graph]
    return list(result.findings)


def test_outlier_channels_are_multiplied_apart_and_their_rows_are_zero():
    model = parse(TEXT, w=W, b=B)
    (finding,) = split(model, inputs())
    assert (finding.layer, finding.action) == ("p", "converted")
    assert "3 of 48 input channels" in finding.reason
    assert operators(model) == SPLIT
    mask, gather, product, bias, rows, total = model.graph
    (linear,) = float_linears(model)
    assert (linear.matmul, linear.add, linear.name) == (product, bias, "p")
    assert np.flatnonzero(constant_array(mask.inputs[1]) == 0).tolist() == OUTLIERS
    assert set(constant_array(mask.inputs[1])) == {0, 1}
    assert constant_array(gather.inputs[1]).tolist() == OUTLIERS
    weight = constant_array(product.inputs[1])
    assert not weight[OUTLIERS].any()
    np.testing.assert_array_equal(np.delete(weight, OUTLIERS, 0), np.delete(W, OUTLIERS, 0))
    np.testing.assert_array_equal(constant_array(rows.inputs[1]), W[OUTLIERS])
    assert (rows.name, total.name) == ("p.outliers", "p.sum")
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert [value.shape[-1] for value in (mask.outputs[0], gather.outputs[0], total.outputs[0])] == [48, 3, 6]


def test_with_int8_behind_it_the_arithmetic_is_that_of_the_paper():
    """Equation 8: sum over O in float, over the others by absmax of rows of x and of columns of W, inliers alone."""
    x = inputs()
    model = parse(TEXT, w=W, b=B)
    splitting(x)(model)
    InsertQdq(PER_TOKEN)(model)
    assert operators(model).count("QuantizeDequantizePerToken") == operators(model).count("DequantizeLinear") == 1
    inliers = np.setdiff1d(np.arange(CHANNELS), OUTLIERS)
    some, weight = x[:, inliers].astype(np.float64), W[inliers].astype(np.float64)
    steps, columns = np.abs(some).max(1, keepdims=True) / 127, np.abs(weight).max(0) / 127
    integers = np.rint(some / steps) @ np.rint(weight / columns)
    expected = x[:, OUTLIERS].astype(np.float64) @ W[OUTLIERS] + integers * steps * columns + B
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_linears_of_one_value_share_the_channels_and_other_readers_keep_it():
    products = "a = MatMul(x, w) b = MatMul(x, v) y = Mul(a, b) z = Relu(x)"
    model = parse(f"g (float[n, 48] x) => (float[n, 6] y, float[n, 48] z) {{ {products} }}", w=W, v=V)
    (finding,) = split(model, inputs())
    assert finding.layer == "a"
    assert operators(model) == [*["Mul", "Gather"], *["MatMul", "MatMul", "Add"] * 2, "Mul", "Relu"]
    first, second = float_linears(model)
    assert first.x is second.x
    assert next(node for node in model.graph if node.op_type == "Relu").inputs[0] is model.graph.inputs[0]
    product = model.graph.outputs[0].producer()
    assert [value.producer().op_type for value in product.inputs] == ["Add", "Add"]


def test_a_weight_that_is_read_elsewhere_keeps_its_rows():
    text = "g (float[n, 48] x) => (float[n, 6] y) { a = MatMul(x, w) t = Tanh(x) c = MatMul(t, w) y = Add(a, c) }"
    model = parse(text, w=W)
    split(model, inputs())
    other = next(node for node in model.graph if node.name == "c" or node.outputs[0].name == "c")
    np.testing.assert_array_equal(constant_array(other.inputs[1]), W)


def test_a_product_that_is_an_output_and_is_read_keeps_its_name_and_meaning():
    text = "g (float[n, 48] x) => (float[n, 6] y, float[n, 6] z) { y = MatMul(x, w) z = Relu(y) }"
    model, x = parse(text, w=W), inputs()
    split(model, x)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    found = get("onnxruntime").open_session(model).run({"x": x})
    np.testing.assert_allclose(found["z"], np.maximum(found["y"], 0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "settings", "reason"),
    [
        (inputs([]), {}, "not split: the largest magnitude is 3.75"),
        (inputs(), {"max_share": 0.05}, "not split: 3 of 48 input channels exceed 6, more than the part 0.05 of them"),
        (inputs(list(range(0, 48, 2))), {}, "24 of 48 input channels exceed 6"),
        (inputs([]), {"threshold": "auto"}, "relative error of the output"),
    ],
    ids=["none", "share", "many", "auto"],
)
def test_where_there_are_no_outliers_the_reason_is_said_of_the_layer_and_of_the_model(x, settings, reason):
    model = parse(TEXT, w=W, b=B)
    result = splitting(x, **settings)(model)
    layer, whole = result.findings
    assert not result.modified
    assert (layer.layer, layer.action, whole.layer, whole.action) == ("p", "kept", "split_outliers", "kept")
    assert reason in layer.reason
    assert "outliers in no layer" in whole.reason
    assert operators(model) == ["MatMul", "Add"]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (parse(TEXT, w=W, b=B), {"ignore": frozenset({"p"})}),
        (parse(TEXT, w=W, b=B), {"operators": frozenset({"Conv"})}),
        (parse(TEXT, w=np.where(W[0, 0] == W, np.float32(np.inf), W), b=B), {}),
        (parse("g (float[48] x) => (float[6] y) { y = MatMul(x, w) }", w=W), {}),
        (
            parse(
                "g (float[n, 48] x) => (float[n, 6] y) { c = Relu(k) p = MatMul(c, w) s = MatMul(x, z) y = Add(p, s) }",
                w=W,
                k=inputs()[:1],
                z=np.zeros((48, 6), np.float32) + np.nan,
            ),
            {},
        ),
    ],
    ids=["ignored", "backend", "weight", "vector", "constant"],
)
def test_layers_that_nobody_quantizes_are_left_alone(model, settings):
    x = inputs() if len(model.graph.inputs[0].shape) == 2 else inputs()[0]
    result = splitting(x, **settings)(model)
    assert not result.modified
    assert not result.findings


def test_what_holds_nan_is_not_split():
    model = parse("g (float[n, 48] x) => (float[n, 6] y) { r = Sqrt(x) y = MatMul(r, w) }", w=W)
    result = splitting(inputs())(model)
    assert "not split: its input holds NaN" in result.findings[0].reason
    assert not result.modified


def test_auto_takes_what_pays_and_nothing_without_outliers():
    wide = np.tile(inputs(), (1, 16))
    wide[:, 48:] = np.clip(np.random.default_rng(2).standard_normal((64, 48 * 15)), -4, 4)
    text = "g (float[n, 768] x) => (float[n, 6] y) { y = MatMul(x, w) }"
    model = parse(text, w=RNG.standard_normal((768, 6)).astype(np.float32))
    (finding,) = split(model, wide, threshold="auto")
    assert "input channels are multiplied in float: relative error of the output" in finding.reason
    taken = constant_array(model.graph[1].inputs[1])
    assert set(OUTLIERS) <= set(taken)
    assert taken.size < 12


def test_a_linear_that_is_split_is_not_split_again():
    model = parse(TEXT, w=W, b=B)
    splitting(inputs())(model)
    again = splitting(inputs(), threshold=3.7)(model)
    assert not again.modified
    assert not again.findings


def test_without_calibration_data_it_is_refused():
    with pytest.raises(CalibrationError, match="needs statistics"):
        SplitOutliers()(parse(TEXT, w=W, b=B))
    assert SplitOutliers().without_calibration() is None
    with pytest.raises(CalibrationError, match="split_outliers works from calibration data"):
        qcompile.compile(parse(TEXT, w=W, b=B), "llm-int8")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"threshold": 0.0}, "threshold 0.0"),
        ({"threshold": float("inf")}, "threshold inf"),
        ({"max_share": 1.5}, "max_share"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(RecipeError, match=match):
        SplitOutliers(**settings)


@pytest.mark.parametrize(("settings", "may"), [({}, False), ({"threshold": "auto"}, True), ({"ignore": {"p"}}, True)])
def test_data_or_the_user_may_leave_nothing(settings, may):
    assert SplitOutliers(**settings).may_match_nothing is may


def test_the_outliers_stay_float_under_every_quantizer_and_the_report_says_so():
    model = parse(TEXT, w=W, b=B)
    splitting(inputs())(model)
    QuantizeWeights(4, 16)(model)
    kinds = [node.inputs[1].producer() is not None for node in model.graph if node.op_type == "MatMul"]
    assert kinds == [True, False]


# Two linears behind norms with planted outliers, which the weights make up for: as the benchmark's, in small.
PLANTED = """g (float[n, t, 96] x) => (float[n, t, 96] y) {
    n = RMSNormalization(x, g) a = MatMul(n, w) f = Add(a, b) h = Tanh(f)
    m = RMSNormalization(h, k) c = MatMul(m, v) y = Add(c, x)
}"""


def planted(factor: float, hidden: bool = True) -> ir.Model:
    """The model, with weights that hide the outliers from its outputs, or that do not."""
    rng = np.random.default_rng(5)
    gains = np.ones((2, 96), np.float32)
    gains[:, [3, 50]] = factor
    w, v = (
        (rng.standard_normal((96, 96)) / 10 / (gain[:, None] if hidden else 1)).astype(np.float32) for gain in gains
    )
    return parse(PLANTED, g=gains[0], k=gains[1], w=w, v=v, b=rng.standard_normal(96).astype(np.float32))


DATA = [{"x": np.random.default_rng(7 + index).standard_normal((2, 16, 96)).astype(np.float32)} for index in range(4)]
SMOOTHED, SPLITTING = Recipe.from_name("w8a8-dynamic"), Recipe.from_name("llm-int8")
AUTO = Recipe.from_name("llm-int8", threshold="auto")
BOTH = Recipe("smooth then split", (*SMOOTHED.steps[:2], SPLITTING.steps[0], *SMOOTHED.steps[2:]))


def error(model: ir.Model, outputs: list[np.ndarray]) -> float:
    session = get("onnxruntime").open_session(model)
    exact = [session.run(feed)["y"] for feed in DATA]
    noise = sum(np.square(one - other).sum() for one, other in zip(exact, outputs, strict=True))
    return float(np.sqrt(noise / sum(np.square(one).sum() for one in exact)))


def compiled(
    model: ir.Model, recipe: str | Recipe, backend: str, verify: bool = False
) -> tuple[float, qcompile.Artifact]:
    artifact = qcompile.compile(model, recipe, backend=backend, calibration=DATA, tune="none", verify=verify)
    return error(model, [artifact.run(feed)["y"] for feed in DATA]), artifact


@pytest.mark.parametrize("backend", BACKENDS)
def test_planted_outliers_cost_nothing_on_any_backend(backend):
    unplanted, _ = compiled(planted(1), "w8a8-dynamic", backend)
    found, artifact = compiled(planted(60), "llm-int8", backend, verify=True)
    assert found <= 1.1 * unplanted
    assert artifact.report.agreements
    actions = {layer.name: layer.action for layer in artifact.report.layers}
    assert actions == {"a": "quantized", "c": "quantized", "a.outliers": "kept", "c.outliers": "kept"}
    told = next(layer for layer in artifact.report.layers if layer.name == "a.outliers")
    assert told.reason == "it multiplies the outlier channels of a split linear, which stay float"


@pytest.mark.parametrize("recipe", [SPLITTING, AUTO, BOTH], ids=["threshold", "auto", "smooth"])
def test_planted_outliers_cost_nothing_in_torch(recipe):
    def found(factor: float, recipe: str | Recipe) -> float:
        model = planted(factor)
        module = lower(qcompile.rewrite(planted(factor), recipe, calibration=DATA, verify=False))
        return error(model, [module(torch.from_numpy(feed["x"]))["y"].numpy() for feed in DATA])

    assert found(60, recipe) <= 1.1 * found(1, "w8a8-dynamic")


def test_what_smoothing_leaves_is_split():
    for hidden, splits in ((True, 0), (False, 2)):
        model = qcompile.rewrite(planted(60, hidden), BOTH.override(alpha=0.3), calibration=DATA)
        assert operators(model).count("Gather") == splits
        assert operators(model).count("DequantizeLinear") == 2


def test_without_outliers_the_recipe_is_int8_everywhere_and_says_so():
    steps = tuple(step for step in SMOOTHED.steps if step.pass_name not in ("smooth_activations", "fold_scales"))
    plain = dataclasses.replace(SMOOTHED, steps=steps)
    models = [qcompile.rewrite(planted(1), recipe, calibration=DATA, verify=False) for recipe in (plain, SPLITTING)]
    assert operators(models[0]) == operators(models[1])
    sessions = [get("onnxruntime").open_session(model) for model in models]
    for feed in DATA:
        np.testing.assert_array_equal(sessions[0].run(feed)["y"], sessions[1].run(feed)["y"])
    _, artifact = compiled(planted(1), "llm-int8", "onnxruntime")
    told = [finding for finding in artifact.report.findings if finding.layer == "split_outliers"]
    assert [finding.action for finding in told] == ["kept"]
