"""Whole models: as ONNX Runtime computes them, and through torch.export and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import qcompile
from qcompile.backends.fx import lower
from qcompile.canonical import canonical_passes
from qcompile.frontend import trace
from qcompile.models import minilm
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.models.random_decoders import random_decoder, tokens
from qcompile.models.reference import Feed, dynamic_axes


def _on_runtime(model: ir.Model, feed: Feed) -> list[np.ndarray]:
    model = model.clone()
    for step in canonical_passes():  # the runtime wants the tables of a rotation for each sample
        step(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(made) for made in session.run(None, dict(feed))]


def _tensors(module: torch.fx.GraphModule, feed: Feed) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.asarray(feed[name])) for name in module.meta["input_names"])


def _assert_same(run: object, tensors: tuple[torch.Tensor, ...], expected: list[np.ndarray]) -> None:
    with torch.no_grad():
        made = run(*tensors)  # type: ignore[operator]
    for one, other in zip(made.values(), expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-4, rtol=1e-4)


def _step(model: ir.Model, batch: int, length: int, past: int) -> Feed:
    generator = np.random.default_rng(length)
    feed = {
        "input_ids": generator.integers(3, 64, (batch, length)),
        "attention_mask": np.ones((batch, past + length), np.int64),
        "position_ids": np.tile(np.arange(past, past + length), (batch, 1)),
    }
    for value in model.graph.inputs:
        if value.name is not None and value.name.startswith("past"):
            assert value.shape is not None
            shape = (batch, int(value.shape[1]), past, int(value.shape[3]))  # type: ignore[arg-type]
            feed[value.name] = generator.standard_normal(shape).astype(np.float32)
    return feed


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox"])
def test_decoders_equal_the_runtime(architecture: str) -> None:
    module, feed = random_decoder(architecture)
    model = trace(module, example_inputs=feed, dynamic_shapes=dynamic_axes(feed))
    lowered = lower(model)
    _assert_same(lowered, _tensors(lowered, feed), _on_runtime(model, feed))


def test_a_step_of_a_decoder_waits_for_nothing_and_is_one_graph(tmp_path: Path) -> None:
    model = trace(write_decoder_folder(tmp_path / "decoder"))
    lowered = lower(model)
    names = [getattr(node.target, "__name__", "") for node in lowered.graph.nodes]
    assert "attention" in names
    assert "from_tensor" not in names
    first, second = _step(model, 2, 5, 3), _step(model, 3, 1, 7)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)}
        for value in model.graph.inputs
    )
    exported = torch.export.export(lowered, _tensors(lowered, first), dynamic_shapes=dynamic, strict=False)
    compiled = torch.compile(lowered, fullgraph=True, backend="aot_eager", dynamic=True)
    for feed in (first, second):
        expected = _on_runtime(model, feed)
        for run in (lowered, compiled) if feed is second else (lowered, compiled, exported.module()):
            _assert_same(run, _tensors(lowered, feed), expected)
    operators = {str(node.target) for node in exported.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in operators
    assert "aten.item.default" not in operators


@pytest.mark.parametrize("recipe", ["w8a8-dynamic", "nf4", "w4a8"])
def test_rewritten_models_equal_the_reference_of_onnx(recipe: str, traced_decoder: Callable[[str], ir.Model]) -> None:
    feed = tokens(2, 12, seed=0)
    model = qcompile.rewrite(traced_decoder("llama"), recipe=recipe, calibration=[feed])
    lowered = lower(model)
    expected = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feed))
    _assert_same(lowered, _tensors(lowered, feed), expected)


@pytest.mark.data
def test_minilm_equals_the_runtime() -> None:
    encoder = minilm.load()
    model = trace(encoder.module, example_inputs=encoder.example(), dynamic_shapes=encoder.dynamic_shapes())
    feed = next(encoder.batches(["A text.", "Another, longer one."], length=12, batch=2))
    lowered = lower(model)
    _assert_same(lowered, _tensors(lowered, feed), _on_runtime(model, feed))
