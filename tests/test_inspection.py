"""What is in a model or an artifact, without running it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile import backends
from qcompile.errors import ArtifactError, ModelError
from qcompile.inspection import LayerFacts, inspect_artifact, inspect_model
from qcompile.recipe import named_recipes
from tests.backends.portable import parse
from tests.test_verify_artifact import LAYERS, network, samples

RANDOM = np.random.default_rng(0)


def test_the_facts_of_a_model_are_those_of_the_model() -> None:
    model = parse(
        "(float[n,3,8,8] x, float[n,5] z) => (float[n,4,6,6] c, float[n,2] y) "
        "{ [conv] c = Conv(x, k) [half] h = Cast<to = 10>(z) [fc] g = MatMul(h, w) y = Cast<to = 1>(g) }",
        k=RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32),
        w=RANDOM.normal(size=(5, 2)).astype(np.float16),
    )
    facts = inspect_model(model)
    assert (facts.name, facts.opsets[""]) == ("main", 23)
    assert [(port.name, port.dtype, port.shape) for port in facts.inputs] == [
        ("x", "float32", ("n", 3, 8, 8)),
        ("z", "float32", ("n", 5)),
    ]
    assert [port.name for port in facts.outputs] == ["c", "y"]
    assert facts.operators == {"Cast": 2, "Conv": 1, "MatMul": 1}
    assert facts.layers == (
        LayerFacts("conv", "Conv", (4, 3, 3, 3), "float32"),
        LayerFacts("fc", "Linear", (5, 2), "float16"),
    )
    found = {(each.recipe, each.backend): each for each in facts.recipes}
    assert found["w8a8-static", "onnxruntime"].layers == 1  # of the other the weight is not float32
    assert found["w8a8-static", "onnxruntime"].needs == "calibration data"
    assert found["w8a8-dynamic", "openvino"].layers == 0  # dynamic quantization is for linears
    assert found["w8a8-dynamic", "openvino"].needs == ""
    assert found["w8a8-dynamic", "openvino"].better_with == "calibration data"
    assert found["w4a16-gptq", "openvino"].better_with == "calibration data"
    assert found["w4a16-rtn", "openvino"].better_with == ""
    assert "weights that are stored in blocks" in found["keep", "openvino"].refusal
    assert len(found) == len(backends.BACKENDS) * len(named_recipes())


def test_what_is_quantized_already_is_counted_and_no_recipe_finds_it() -> None:
    facts = inspect_model(qcompile.rewrite(network(), "w8a8-static", calibration=samples()))
    assert facts.quantized == LAYERS
    assert {each.layers for each in facts.recipes} == {0}


def test_the_recipes_find_as_many_layers_as_compile_quantizes() -> None:
    facts = inspect_model(network())
    for each in facts.recipes:
        if each.recipe in ("w8a8-dynamic", "w8a8-static") and each.backend == "onnxruntime":
            report = qcompile.compile(network(), each.recipe, calibration=samples(), verify=False).report
            assert sum(layer.action == "quantized" for layer in report.layers) == each.layers


def test_embeddings_are_counted_where_a_recipe_quantizes_them() -> None:
    model = parse(
        "(int64[n] ids) => (float[n,8] y) { [words] a = Gather(large, ids) [places] b = Gather(small, ids) "
        "h = Add(a, b) [fc] y = MatMul(h, w) }",
        large=RANDOM.normal(size=(9000, 8)).astype(np.float32),
        small=RANDOM.normal(size=(9000, 8)).astype(np.float32)[:16],
        w=RANDOM.normal(size=(8, 8)).astype(np.float32),
    )
    facts = inspect_model(model)
    assert facts.layers == (
        LayerFacts("fc", "Linear", (8, 8), "float32"),
        LayerFacts("words", "Embedding", (9000, 8), "float32"),
        LayerFacts("places", "Embedding", (16, 8), "float32"),
    )
    counted = {each.recipe: each.layers for each in facts.recipes if each.backend == "onnxruntime"}
    assert counted["w8a8-dynamic"] == 2  # the other table is too small
    assert counted["smoothquant-o2"] == 1
    report = qcompile.compile(model, "w8a8-dynamic", verify=False).report
    assert sum(layer.action == "quantized" for layer in report.layers) == 2


def test_the_facts_of_an_artifact_are_those_of_its_manifest(tmp_path: Path) -> None:
    artifact = qcompile.compile(network(), "w8a8-dynamic", target="avx2", output=tmp_path / "a")
    facts = inspect_artifact(tmp_path / "a")
    assert (facts.recipe, facts.backend, facts.target) == ("w8a8-dynamic", "onnxruntime", "avx2")
    assert facts.files == {name: (tmp_path / "a" / name).stat().st_size for name in artifact.manifest.files}
    assert facts.layers == {"quantized": LAYERS}
    assert facts.can_be_verified
    qcompile.compile(network(), "w8a8-dynamic", verify=False, output=tmp_path / "a")
    assert not inspect_artifact(tmp_path / "a").can_be_verified


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        inspect_artifact(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        inspect_model(tmp_path / "model.onnx")
