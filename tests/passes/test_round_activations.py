"""RoundActivations: which activations are rounded, in which blocks, and on both backends to the end."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.block_functions import rounded_in_blocks
from qcompile.errors import RecipeError
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.passes.round_activations import RoundActivations
from qcompile.recipe import Recipe
from tests.passes.quantizable import operators, parse, run

TWO = "g (float[n, 64] x) => (float[n, 48] y, float[n, 48] z) { y = MatMul(x, w) z = MatMul(x, v) }"
RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((64, 48)).astype(np.float32) for name in "wv"}


def grouped(group_size: int, text: str = TWO) -> ir.Model:
    model = parse(text, **WEIGHTS)
    QuantizeWeights(4, group_size)(model)
    return model


@pytest.mark.parametrize(("group", "block"), [(32, 32), (48, 16), (-1, 128), (96, 128), (256, 128), (16, 16)])
def test_the_block_divides_the_groups_of_the_weight(group: int, block: int) -> None:
    model = grouped(group)
    assert RoundActivations()(model).modified
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert {rounded_in_blocks(node.inputs[0]) for node in products} == {(model.graph.inputs[0], block)}
    assert operators(model).count("QuantizeDequantizePerBlock") == 1
    again = RoundActivations()(model)
    assert not again.modified
    assert not again.findings


def test_the_largest_block_is_a_setting() -> None:
    model = grouped(64)
    RoundActivations(most=32)(model)
    assert rounded_in_blocks(model.graph.outputs[0].producer().inputs[0])[1] == 32


@pytest.mark.parametrize("most", [0, 17, 256])
def test_a_block_without_a_kernel_is_refused(most: int) -> None:
    with pytest.raises(RecipeError, match="Give one of 128, 64, 32, 16"):
        Recipe.from_name("w4a8", most=most)


def test_the_rounding_is_that_of_8_bits() -> None:
    model, x = grouped(32), RNG.standard_normal((5, 64)).astype(np.float32)
    before = run(model, x)
    RoundActivations()(model)
    error = np.abs(run(model, x) - before).max() / np.abs(before).max()
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        (grouped(17), {}, "no block of 16 or more channels divides its groups of 17"),
        (grouped(32), {"ignore": frozenset({"y", "z"})}, "leaves it out"),
        (grouped(32), {"operators": frozenset()}, "has no such products"),
        (grouped(32, TWO.replace("n, ", "")), {}, "what it reads is a vector"),
    ],
    ids=["groups", "ignored", "backend", "vector"],
)
def test_what_stays_float_is_said(model: ir.Model, settings: dict[str, frozenset[str]], reason: str) -> None:
    result = RoundActivations(**settings)(model)
    assert not result.modified
    assert [finding.layer for finding in result.findings] == ["y", "z"]
    assert all(reason in finding.reason for finding in result.findings)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("bits", "group", "sym"), [(2, 32, True), (3, -1, False), (4, 48, False), (8, 64, True)])
def test_the_recipe_is_verified_on_both_backends(backend: str, bits: int, group: int, sym: bool) -> None:
    text = "g (float[n, 64] x) => (float[n, 48] z) { y = MatMul(x, w) t = Tanh(y) z = MatMul(t, v) }"
    model = parse(text, w=WEIGHTS["w"], v=RNG.standard_normal((48, 48)).astype(np.float32))
    recipe = Recipe.from_name("w4a8", bits=bits, group_size=group, sym=sym)
    data = [{"x": RNG.standard_normal((3, 64)).astype(np.float32)}]
    artifact = qcompile.compile(model, recipe, backend=backend, calibration=data)
    assert artifact.report.agreements
    assert [layer.action for layer in artifact.report.layers] == ["quantized"] * 2
