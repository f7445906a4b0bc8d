"""Recipes of which a pass, or all, find nothing: what is done all the same, and what the error says to do."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.errors import NothingMatchedError
from tests.scaled_models import parse

ROWS, CHANNELS = 4096, 16


@functools.cache
def embeddings(rows: int = ROWS) -> ir.Model:
    body = "e = Gather(w, ids) y = ReduceMean<keepdims = 0, noop_with_empty_axes = 1>(e)"
    return parse(f"int64[batch, sequence] ids, float[{rows}, {CHANNELS}] w", body)


def samples(rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    return [{"ids": np.random.default_rng(seed).integers(0, rows, (2, 5))} for seed in range(2)]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("recipe", "data"), [("w8a8-static", True), ("w8a8-dynamic", False)])
def test_a_model_of_nothing_but_embeddings_is_stored_in_8_bits(recipe, data, backend):
    pytest.importorskip(backend)
    artifact = qcompile.compile(embeddings(), recipe, backend=backend, calibration=samples() if data else None)
    (layer,) = artifact.report.layers
    assert (layer.operator, layer.action, layer.shape) == ("Embedding", "quantized", (ROWS, CHANNELS))
    assert artifact.report.size["quantized_bytes"] < 0.4 * artifact.report.size["float_bytes"]
    told = {finding.layer.partition("(")[0]: finding.reason for finding in artifact.report.findings}
    assert told["insert_qdq"].startswith("it matched nothing: it looks for MatMul, Conv or ConvTranspose")


@pytest.mark.parametrize("recipe", ["smoothquant-o1", "smoothquant-o3"])
def test_recipes_without_a_pass_for_embeddings_name_it(recipe):
    with pytest.raises(NothingMatchedError, match=r"found 1 Gather.*quantize_embeddings stores .* use w8a8-dynamic"):
        qcompile.compile(embeddings(), recipe, calibration=samples())


def test_tables_that_are_too_small_are_the_error_of_the_pass_that_found_nothing():
    with pytest.raises(NothingMatchedError, match=r"^pass insert_qdq: .*found 1 Gather.* Take it out of the recipe"):
        qcompile.compile(embeddings(64), "w8a8-static", calibration=samples(64))


def test_recurrent_layers_are_named_as_what_no_pass_quantizes():
    body = "_, y = GRU<hidden_size = 4>(x, w, wr)"
    model = parse("float[batch, sequence, 8] x, float[1, 12, 8] w, float[1, 12, 4] wr", body)
    data = [{"x": np.ones((2, 3, 8), np.float32)}]
    with pytest.raises(NothingMatchedError, match=r"the weights are those of 1 GRU, which no pass .* Use recipe float"):
        qcompile.compile(model, "w8a8-static", calibration=data)


def test_exact_passes_that_find_nothing_are_errors_whatever_others_do():
    recipe = qcompile.Recipe("r", ("lower_gemms", "quantize_embeddings"))
    with pytest.raises(NothingMatchedError, match="pass lower_gemms"):
        qcompile.compile(embeddings(), recipe, calibration=samples())
