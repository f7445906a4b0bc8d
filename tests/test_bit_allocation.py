"""Bits "auto": the budget is kept and told, and the model computes better than with as many bits everywhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.bit_allocation import effective_bits
from qcompile.calibration import Calibrator
from qcompile.errors import RecipeError
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.recipe import Recipe
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
    assert found[0].reason.endswith("4.2 were asked")


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
