"""Decoders with their cache in states compute what transformers does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile import backends
from qcompile.backends.openvino.caches import BEAMS
from qcompile.backends.openvino.generation import MODEL_FILE, lower_generator, open_generator
from qcompile.backends.openvino.runtime import core
from qcompile.backends.openvino.stateful_session import StatefulSession
from qcompile.errors import InputError, UnsupportedError
from qcompile.models.random_decoders import random_decoder
from qcompile.passes.quantize_weights import QuantizeWeights

TOLERANCE = 1e-4
"""Of the largest logit: what `exact` promises, see DESIGN.md."""


def written(architecture: str, folder: Path) -> tuple[torch.nn.Module, StatefulSession]:
    reference = random_decoder(architecture)[0].model
    reference.save_pretrained(folder)
    lower_generator(qcompile.trace(folder), folder)
    return reference, open_generator(folder / MODEL_FILE, threads=1)


def expected(reference: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits without a cache; positions count what is not masked."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits: np.ndarray = reference(**{name: torch.tensor(each) for name, each in given.items()}).logits.numpy()
    return logits


def fed(ids: np.ndarray, mask: np.ndarray, past: int) -> dict[str, np.ndarray]:
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    return {"input_ids": ids[:, past:], "attention_mask": mask, "position_ids": positions[:, past:]}


def close(logits: np.ndarray, wanted: np.ndarray, mask: np.ndarray) -> None:
    assert np.abs(logits - wanted)[mask == 1].max() <= TOLERANCE * np.abs(wanted).max()


def runtime_nodes(session: StatefulSession) -> list[Any]:
    nodes: list[Any] = session.inner.compiled.get_runtime_model().get_ordered_ops()
    return nodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def llama(folder: Path) -> tuple[torch.nn.Module, StatefulSession]:
    return written("llama", folder)


def steps_match(reference: torch.nn.Module, session: StatefulSession) -> None:
    """A padded prompt of two rows, then three tokens one by one through the states, with the rows exchanged once."""
    generator = np.random.default_rng(1)
    ids = generator.integers(3, 200, (2, 7))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    session.inner.request.reset_state()
    rows = np.arange(2, dtype=np.int32)
    logits = session.inner.run({**fed(ids, mask, 0), BEAMS: rows})["logits"]
    close(logits, expected(reference, ids, mask), mask)
    for beams in (rows, rows[::-1].copy(), np.zeros(2, np.int32)):
        new = generator.integers(3, 200, (2, 1))
        ids, mask = np.hstack([ids[beams], new]), np.hstack([mask[beams], np.ones_like(new)])
        logits = session.inner.run({**fed(ids, mask, ids.shape[1] - 1), BEAMS: beams})["logits"]
        close(logits, expected(reference, ids, mask)[:, -1:], mask[:, -1:])


def test_states_follow_the_prompt_the_steps_and_the_beams(llama: tuple[torch.nn.Module, StatefulSession]) -> None:
    steps_match(*llama)


# Grouped heads with norms of queries and keys; windows; a part of each head rotated; learned positions, no groups.
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "phi", "gpt2"])
def test_any_architecture_keeps_its_cache_in_states(architecture: str, tmp_path: Path) -> None:
    steps_match(*written(architecture, tmp_path))


def test_cache_goes_in_and_comes_out(llama: tuple[torch.nn.Module, StatefulSession]) -> None:
    reference, session = llama
    ids = np.random.default_rng(2).integers(3, 200, (2, 9))
    mask = np.ones_like(ids)
    empty = {cache.past: np.zeros((2, 2, 0, 16), np.float32) for cache in session.caches}
    prompt = session.run({**fed(ids[:, :6], mask[:, :6], 0), **empty})
    session.run({**fed(ids[:, 3:], mask[:, 3:], 0), **empty})  # what is in the states between must not matter
    past = {cache.past: prompt[cache.present] for cache in session.caches}
    assert {array.shape for array in past.values()} == {(2, 2, 6, 16)}
    answer = session.run({**fed(ids, mask, 6), **past})
    close(answer["logits"], expected(reference, ids, mask)[:, 6:], mask[:, 6:])


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("bits", [4, 8])
def test_joined_weights_in_blocks_compute_what_the_portable_graph_does(folder: Path, bits: int, tmp_path: Path) -> None:
    portable = qcompile.trace(folder)
    QuantizeWeights(bits=bits, group_size=16)(portable)
    assert sum(node.op_type == "MatMul" for node in portable.graph) == 15
    lower_generator(portable, tmp_path)
    session = open_generator(tmp_path / MODEL_FILE, threads=1)
    kernels = [node.get_rt_info()["layerType"].astype(str) for node in runtime_nodes(session)]
    assert (kernels.count("FullyConnected"), kernels.count("RoPE")) == (9, 2)
    ids = np.random.default_rng(5).integers(3, 200, (2, 9))
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    past = {cache.past: np.zeros((2, 2, 0, 16), np.float32) for cache in session.caches}
    for start, end in itertools.pairwise((0, 7, 8, 9)):
        feed = {**fed(ids[:, :end], mask[:, :end], start), **past}
        wanted = backends.get("onnxruntime").open_session(portable).run(feed)
        found = session.run(feed)
        close(found["logits"], wanted["logits"], mask[:, start:end])
        past = {cache.past: found[cache.present] for cache in session.caches}


def test_feed_without_a_cache_is_refused(llama: tuple[torch.nn.Module, StatefulSession]) -> None:
    ids = np.ones((1, 3), np.int64)
    with pytest.raises(InputError, match=r"past_key_values\.0\.key"):
        llama[1].run(fed(ids, ids, 0))


def test_plugin_runs_attention_and_states_as_one_operator(llama: tuple[torch.nn.Module, StatefulSession]) -> None:
    types = [node.get_rt_info()["layerType"].astype(str) for node in runtime_nodes(llama[1])]
    assert types.count("ScaledDotProductAttention") == 2
    assert types.count("MemoryInput") == types.count("MemoryOutput") == 4
    assert types.count("RoPE") > 0
    assert not {"Tile", "Select", "Eltwise/IsNaN"} & set(types)


@pytest.mark.usefixtures("llama")
def test_paged_attention_takes_the_model(folder: Path) -> None:
    from openvino._offline_transformations import paged_attention_transformation

    model = core().read_model(folder / MODEL_FILE)
    paged_attention_transformation(model)
    names = [node.get_type_name() for node in model.get_ordered_ops()]
    assert names.count("PagedAttentionExtension") == 2
    assert "ReadValue" not in names


def test_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]> g (float[1] x) => (float[1] y) {y = Abs(x)}')
    with pytest.raises(UnsupportedError, match="cache"):
        lower_generator(model, tmp_path)
