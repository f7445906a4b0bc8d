"""Bits "auto": the budget is kept and told, and the model computes better than with as many bits everywhere."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.backends import get
from qcompile.bit_allocation import effective_bits
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError, RecipeError
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.recipe import Recipe
from qcompile.rounding_trials import RoundingTrials
from qcompile.scheme import GroupScheme
from qcompile.session import Session
from tests.passes.quantizable import calibrator, parse, relative_error

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.normal(size=(128, 128)).astype(np.float32) / 11 for name in "abcdef"}
BRANCHES = """g (float[n, 128] x) => (float[n, 128] y) {
    s = Constant <value = float {0.02}> ()
    h = MatMul(x, a) k = MatMul(h, b) m = MatMul(k, c)
    p = MatMul(x, d) q = MatMul(p, e) r = MatMul(q, f) u = Mul(r, s)
    y = Add(m, u) }"""
"""The second branch is next to nothing in the output."""

AUTO = QuantizeWeights("auto", solver="rtn", head=None)


def model() -> ir.Model:
    return parse(BRANCHES, **WEIGHTS)


def quantized(settings: QuantizeWeights, data: Calibrator | None) -> tuple[ir.Model, dict[str, str], str]:
    """The model, what was said of each layer, and of all."""
    after = model()
    findings = dataclasses.replace(settings, calibrator=data)(after).findings
    (told,) = [finding.reason for finding in findings if finding.action == "kept"] or [""]
    return after, {str(f.value): f.reason for f in findings if f.action == "quantized"}, told


def test_bits_go_to_the_weights_that_the_output_depends_on():
    settings = dataclasses.replace(AUTO, effective_bits=4.5)
    after, bits, told = quantized(settings, calibrator(model()))
    assert sorted(bits.values()) == ["2 bits", "2 bits", "4 bits", "4 bits", "4 bits", "8 bits"]
    assert {bits[name] for name in "hkm"} == {"4 bits", "8 bits"}
    assert told == "4.5 bits for each number, with scales and zero points; 4.5 were asked"
    uniform, _, nothing = quantized(QuantizeWeights(4, solver="rtn", head=None), calibrator(model()))
    assert nothing == ""
    # Of three errors of one size, one is gone: sqrt(2 / 3) of them is left.
    assert relative_error(model(), after) < 0.85 * relative_error(model(), uniform)


@pytest.mark.parametrize("budget", [2.6, 3.2, 4.0, 5.1, 7.7])
@pytest.mark.parametrize("sym", [True, False])
def test_the_budget_is_kept(budget, sym):
    settings = dataclasses.replace(AUTO, effective_bits=budget, sym=sym)
    _, bits, told = quantized(settings, calibrator(model()))
    mean = np.mean([effective_bits(GroupScheme(int(said[0]), 64, sym), 128) for said in bits.values()])
    assert mean <= budget
    assert mean > budget - 4 / 6  # a step from 4 to 8 bits of one of the six
    assert told.startswith(f"{mean:.4g} bits")


def test_what_is_not_possible_is_said_and_the_fewest_bits_are_taken():
    _, bits, told = quantized(dataclasses.replace(AUTO, effective_bits=2.4), calibrator(model()))
    assert set(bits.values()) == {"2 bits"}
    assert told == "2.5 bits for each number, with scales and zero points, the fewest; 2.4 is not possible"


def test_without_data_the_weights_decide():
    weights = dict(WEIGHTS, b=np.sign(WEIGHTS["b"]))
    after = parse(BRANCHES, **weights)
    found = dataclasses.replace(AUTO, effective_bits=4.2)(after).findings
    assert {str(finding.value): finding.reason for finding in found}["k"] == "2 bits"
    assert found[-1].reason.endswith("4.2 were asked")


def test_the_float_weights_are_as_they_were():
    kept = quantized(dataclasses.replace(AUTO, effective_bits=100), calibrator(model()))[0]
    alone, _, _ = quantized(QuantizeWeights(8, solver="rtn", head=None), calibrator(model()))
    for one, other in zip(kept.graph.initializers.values(), alone.graph.initializers.values(), strict=True):
        np.testing.assert_array_equal(one.const_value.numpy(), other.const_value.numpy())


def test_one_session_measures_all_weights() -> None:
    data, opened = calibrator(model()), list[int]()

    def counting(graph: ir.Model) -> Session:
        opened.append(len(graph.graph.inputs))
        return data.open_session(graph)

    quantized(dataclasses.replace(AUTO, effective_bits=4.5), dataclasses.replace(data, open_session=counting))
    assert opened.count(1 + len(WEIGHTS)) == 1
    assert len(opened) < len(WEIGHTS)


def test_a_model_without_floating_outputs_is_judged_by_its_layers() -> None:
    text = BRANCHES.replace("(float[n, 128] y)", "(int64[n, 1] y)").replace(
        "y = Add(m, u)", "v = Add(m, u) y = ArgMax(v)"
    )
    after = parse(text, **WEIGHTS)
    settings = dataclasses.replace(AUTO, effective_bits=4.5, calibrator=calibrator(after))
    assert settings(after).modified


def cosine_drop(before: ir.Model, after: ir.Model, data: Calibrator) -> float:
    """1 - cosine of y over the first two samples."""
    feeds = list(itertools.islice(data.samples(before), 2))
    sides = [
        [get("onnxruntime").open_session(each).run(feed)["y"].ravel() for feed in feeds] for each in (before, after)
    ]
    return 1 - float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*sides, strict=True)]))


@pytest.mark.parametrize("max_drop", [0.0003, 0.003, 0.03])
def test_the_fewest_bits_that_keep_the_outputs_are_taken(max_drop: float) -> None:
    data = calibrator(model())
    after, bits, told = quantized(dataclasses.replace(AUTO, max_drop=max_drop), data)
    drop = cosine_drop(model(), after, data)
    assert drop <= max_drop
    size, said = told.split(" bits for each number, with scales and zero points; ")
    assert said == f"the cosine to float's outputs drops by {drop:.3g}, at most {max_drop:g} was asked: met"
    assert {bits[name] for name in "pqr"} == {"2 bits"}, "next to nothing of them reaches the output"
    fewer = dataclasses.replace(AUTO, effective_bits=float(size) - 0.01)
    assert cosine_drop(model(), quantized(fewer, data)[0], data) > max_drop


def test_a_drop_that_no_bits_keep_is_said_and_the_most_are_taken() -> None:
    _, bits, told = quantized(dataclasses.replace(AUTO, max_drop=1e-9), calibrator(model()))
    assert {bits[name] for name in "hkm"} == {"8 bits"}
    assert ", the most that help; the cosine to float's outputs drops by " in told
    assert told.endswith("at most 1e-09 was asked: NOT met")


def test_what_the_head_loses_counts_for_the_drop() -> None:
    text = BRANCHES.replace("128] y)", "256] y)").replace("y = Add(m, u)", "z = Add(m, u) y = MatMul(z, head)")
    after = parse(text, **WEIGHTS, head=np.random.default_rng(1).normal(size=(128, 256)).astype(np.float32))
    settings = dataclasses.replace(AUTO, max_drop=0.01, head=GroupScheme(4, 64), calibrator=calibrator(after))
    told = settings(after).findings[-1].reason
    assert told.endswith("at most 0.01 was asked: met")
    assert float(told.split(" bits")[0]) < 8


def test_padding_does_not_count_for_the_drop() -> None:
    text = """g (int64[n, s] mask, float[n, s, 128] x) => (float[n, s, 128] y) {
        axes = Constant <value_ints = [1, 2]> () c = Cast <to = 9> (mask) b = Unsqueeze(c, axes)
        q = MatMul(x, a) k = MatMul(x, d) v = MatMul(x, e)
        y = Attention <q_num_heads = 1, kv_num_heads = 1> (q, k, v, b) }"""
    graph = parse(text, **{name: WEIGHTS[name] for name in "ade"})
    rng, samples = np.random.default_rng(3), []
    for _ in range(2):
        x = rng.normal(size=(1, 6, 128)).astype(np.float32)
        samples.append({"x": x, "mask": np.array([[1, 1, 1, 1, 0, 0]])})
    data = Calibrator(samples, ObserveChannels, get("onnxruntime").open_session)
    trials = RoundingTrials(graph, {name: WEIGHTS[name] for name in "ae"}, data)
    rounded = {"a": np.round(WEIGHTS["a"], 1)}
    counted = trials.drop(rounded), trials.noise(rounded)
    for sample in samples:
        sample["x"][:, 4:] = 1e3 * rng.normal(size=(1, 2, 128))
    again = Calibrator(samples, ObserveChannels, get("onnxruntime").open_session)
    assert counted[0] > 1e-6 > trials.drop({})
    trials = RoundingTrials(graph, {name: WEIGHTS[name] for name in "ae"}, again)
    np.testing.assert_allclose([trials.drop(rounded), *trials.noise(rounded)], [counted[0], *counted[1]], rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 4, "max_drop": 0.1}, "bits are 4 for all"),
        ({"bits": "auto", "max_drop": 0.1, "effective_bits": 4.0}, "effective_bits is 4 already"),
        ({"bits": "auto", "max_drop": -0.1}, "less than 0"),
    ],
)
def test_words_on_the_bits_that_contradict_each_other_are_refused(settings, reason) -> None:
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_name("w4a16-gptq", **settings)


def test_a_drop_needs_data_and_that_is_said_before_the_model_is_read() -> None:
    with pytest.raises(CalibrationError, match="works from calibration data, and there is none"):
        qcompile.compile("nowhere.onnx", Recipe.from_name("w4a16-rtn", bits="auto", max_drop=0.01))


def test_effective_bits_counts_scales_and_zero_points():
    assert effective_bits(GroupScheme(4, 64), 128) == 4.5
    assert effective_bits(GroupScheme(3, 32, sym=False), 48) == 3 + 36 * 2 / 48
    assert effective_bits(GroupScheme(8, -1, sym=False), 40) == 9


def test_the_recipe_takes_it():
    recipe = Recipe.from_name("w4a16-gptq", bits="auto", effective_bits=3.5, widths=[2, 3, 4])
    built = recipe.steps[0].build()
    assert (built.bits, built.effective_bits, built.widths) == ("auto", 3.5, (2, 3, 4))
    assert Recipe.from_name("w4a16-awq", bits="auto").steps[0].build().scheme == GroupScheme(4, 64)
    for wrong in ({"bits": "some"}, {"bits": "auto", "widths": []}, {"bits": "auto", "widths": [9]}):
        with pytest.raises(RecipeError):
            Recipe.from_name("w4a16-rtn", **wrong)
