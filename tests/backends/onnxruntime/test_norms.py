from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.backends import FORM
from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.norms import keep_residual_additions, residual_additions
from tests.backends.onnxruntime.rewrites import check, optimized, refuses
from tests.backends.portable import parse

TEXT = """(float[N,8] x, float[N,8] r) => (float[N,8] y)
{
    h = Add (x, r)
    y = LayerNormalization <axis = -1> (h, g, b)
}"""
WEIGHTS = {"g": np.linspace(0.5, 2, 8, dtype=np.float32), "b": np.linspace(-1, 1, 8, dtype=np.float32)}
FEED = {name: np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) for name in "xr"}


def test_addition_survives_the_optimizations_of_the_runtime() -> None:
    check(parse(TEXT, **WEIGHTS), FEED, {"Sum": 1, "LayerNormalization": 1}, keep_residual_additions)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("y = LayerNormalization <axis = -1> (h, g, b)", "y = Mul (h, g)"),
        TEXT.replace("h = Add", "h = Mul"),
        TEXT.replace("float[", "double["),
    ],
    ids=["no norm", "no addition", "float64"],
)
def test_refuses(text: str) -> None:
    weights = {name: array.astype(np.float64) if "double" in text else array for name, array in WEIGHTS.items()}
    refuses(parse(text, **weights), keep_residual_additions)


def test_an_addition_that_is_to_be_fused_stays() -> None:
    model = parse(TEXT, **WEIGHTS)
    model.graph[0].metadata_props[FORM] = "fused"
    refuses(model, keep_residual_additions)


def test_a_word_that_is_no_form_is_passed_over() -> None:
    model = parse(TEXT, **WEIGHTS)
    model.graph[0].metadata_props[FORM] = "apart, please"
    assert [site.form for site in residual_additions(model)] == ["apart"]


def test_an_addition_that_two_norms_read_is_one_site() -> None:
    text = TEXT.replace("(float[N,8] y)", "(float[N,8] y, float[N,8] z)")
    text = text.replace("}", "z = LayerNormalization <axis = -1> (h, g, b) }")
    assert len(residual_additions(parse(text, **WEIGHTS))) == 1


@pytest.mark.parametrize(
    ("form", "kernels"),
    [("apart", {"Sum", "LayerNormalization"}), ("fused", {"SkipLayerNormalization"})],
)
def test_the_runtime_computes_the_form_that_was_chosen(tmp_path: Path, form: str, kernels: set[str]) -> None:
    model = parse(TEXT.replace("[N,8]", "[N,M,8]"), **WEIGHTS)
    (site,) = BACKEND.sites(model)
    site.nodes[0].metadata_props[FORM] = form
    lowered = optimized(tmp_path / BACKEND.lower(model, tmp_path, target=None).model_file)
    assert {node.op_type for node in lowered.graph.node} == kernels
    assert not any(entry.key == FORM for node in lowered.graph.node for entry in node.metadata_props)
