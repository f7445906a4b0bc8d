"""What a backend cannot do is said before any work is done."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends, processor
from qcompile.capability import check_data, check_recipe, for_target, integer_operators, unverified
from qcompile.errors import CalibrationError, UnsupportedError
from qcompile.recipe import Recipe, named_recipes

STATIC = {"dtype": "int8", "granularity": "per_tensor"}
DYNAMIC = {"dtype": "int8", "granularity": "per_token", "dynamic": True}


def attention(**activations) -> Recipe:
    return Recipe("attention", ({"quantize_attention": {"activations": activations}},))


@pytest.mark.parametrize(
    ("recipe", "backend", "operators"),
    [
        ("float", "openvino", set()),
        ("w8a8-static", "openvino", {"Linear", "Conv", "Embedding"}),
        ("w8a8-dynamic", "onnxruntime", {"Linear", "Embedding"}),
        ("w4a8", "onnxruntime", {"Linear", "Embedding", "Cache"}),
        ("w4a8", "openvino", {"Linear", "Embedding"}),
        ("smoothquant-o2", "openvino", {"Linear"}),
        ("smoothquant-o3", "onnxruntime", {"Linear", "Conv"}),
        ("smoothquant-o3", "openvino", {"Linear", "Conv", "ConvTranspose", "Attention"}),
    ],
)
def test_operators_are_those_of_the_table_that_a_pass_of_the_recipe_quantizes(recipe, backend, operators):
    assert integer_operators(Recipe.from_name(recipe), backends.get(backend), None) == operators
    assert integer_operators(Recipe.from_name(recipe), backends.get(backend), "avx2") == operators - {"Attention"}


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_every_named_recipe_is_for_every_backend(backend):
    for name in named_recipes():
        check_recipe(Recipe.from_name(name), backends.get(backend))
    check_recipe(Recipe("embeddings", ("quantize_embeddings",)), backends.get(backend))


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [
        (attention(**STATIC), "onnxruntime"),
        (attention(**DYNAMIC), "openvino"),
        (Recipe("wide", ({"insert_qdq": {"weights": {"dtype": "uint8"}}}, "quantize_embeddings")), "openvino"),
    ],
)
def test_a_recipe_that_the_backend_has_no_operator_for_is_refused(recipe, backend):
    with pytest.raises(UnsupportedError, match="Use w8a8-static or w8a8-dynamic"):
        check_recipe(recipe, backends.get(backend))


@pytest.mark.parametrize(
    ("recipe", "backend", "told"),
    [
        (
            Recipe("wide", ({"insert_qdq": {"weights": {"dtype": "uint8"}}},)),
            "onnxruntime",
            "insert_qdq.weights is uint8/per_tensor/symmetric/static, it has int8/per_channel/symmetric/static",
        ),
        (
            attention(**DYNAMIC),
            "openvino",
            "quantize_attention.activations is int8/per_token/symmetric/dynamic, it has uint8/per_tensor/symmetric/st",
        ),
        (attention(**STATIC), "onnxruntime", "onnxruntime computes none of its operators in integers. Use"),
    ],
)
def test_the_scheme_that_a_backend_lacks_is_named_with_one_that_it_has(recipe, backend, told):
    with pytest.raises(UnsupportedError) as caught:
        check_recipe(recipe, backends.get(backend))
    assert told in str(caught.value)


def test_attention_alone_is_refused_only_where_it_has_no_kernel():
    check_recipe(attention(**STATIC), backends.get("openvino"))


def test_static_attention_needs_data_before_any_work():
    with pytest.raises(CalibrationError, match="the scales of static activations"):
        check_data(attention(**STATIC), None)
    check_data(attention(**STATIC), [])
    check_data(attention(**DYNAMIC), None)


def test_seven_bits_are_for_the_targets_whose_products_saturate():
    recipe = Recipe.from_name("w8a8-static")
    assert for_target(recipe, ["avx2"], None) == for_target(recipe, ["other"], "other") == recipe
    assert for_target(recipe, ["avx2"], "avx2") == recipe.override(weights={"bits": 7})
    assert for_target(Recipe("nothing"), ["avx2"], "avx2") == Recipe("nothing")
    signed = Recipe.from_name("smoothquant-o3")
    assert for_target(signed, ["avx2"], "avx2") == signed.override(weights={"bits": 7}, activations={"dtype": "uint8"})
    per_token = Recipe.from_name("w8a8-dynamic")
    assert for_target(per_token, ["avx2"], "avx2") == per_token.override(weights={"bits": 7})
    with pytest.raises(UnsupportedError, match="Use one of avx2"):
        for_target(recipe, ["avx2"], "avx3")


@pytest.mark.parametrize(
    ("target", "action"), [(None, "quantized"), ("avx512-vnni", "quantized"), ("avx2", "kept")], ids=str
)
def test_attention_is_in_integers_where_the_backend_has_it_and_its_products_do_not_saturate(target, action):
    shape = "float[batch, 2, sequence, 8]"
    text = f'<ir_version: 10, opset_import: ["" : 23]> g ({shape} x) => ({shape} y) {{ y = Attention(x, x, x) }}'
    data = [{"x": np.random.default_rng(0).normal(size=(1, 2, 4, 8)).astype(np.float32)}]
    artifact = qcompile.compile(
        ir.from_onnx_text(text), attention(**STATIC), backend="openvino", calibration=data, target=target
    )
    assert [(layer.operator, layer.action) for layer in artifact.report.layers] == [("Attention", action)]
    assert artifact.report.accuracy["sqnr_db"] > (30 if action == "quantized" else 100)
    told = [finding.reason for finding in artifact.report.findings if "probabilities" in finding.reason]
    assert len(told) == (action == "quantized")


@pytest.mark.parametrize(
    ("recipe", "target", "saturates"),
    [
        (Recipe.from_name("w8a8-dynamic"), None, True),
        (Recipe.from_name("w8a8-dynamic"), "avx512-vnni", False),
        (for_target(Recipe.from_name("w8a8-dynamic"), ["avx2"], "avx2"), None, False),
        (Recipe.from_name("float"), None, False),
    ],
)
def test_what_saturates_here_and_is_not_verified_is_said_to(recipe, target, saturates, monkeypatch):
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx2"}))
    assert ('target="avx2"' in unverified(recipe, target)) == saturates
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"avx2", "avx_vnni"}))
    assert unverified(recipe, target) == "verify=False"
