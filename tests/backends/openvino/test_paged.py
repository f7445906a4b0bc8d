"""Decoders with paged attention compute what transformers does, in both of their forms."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import qcompile
from qcompile.backends.openvino.cached_attention import attends_to_all_before
from qcompile.backends.openvino.generation import MODEL_FILE, lower_generator
from qcompile.backends.openvino.paged import PagedDecoder, open_paged
from qcompile.backends.openvino.runtime import core
from qcompile.errors import ModelError
from qcompile.models.random_decoders import random_decoder

TOLERANCE = 1e-4
"""Of the largest logit: what `exact` promises, see DESIGN.md."""

CONTEXT = 120
FLOAT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def opened(folder: Path) -> PagedDecoder:
    return open_paged(core().read_model(folder / MODEL_FILE), threads=1, context_length=CONTEXT, **FLOAT)


def written(architecture: str, folder: Path) -> torch.nn.Module:
    reference = random_decoder(architecture)[0].model
    reference.save_pretrained(folder)
    lower_generator(qcompile.trace(folder), folder)
    return reference


def expected(reference: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = reference(input_ids=torch.tensor([tokens])).logits[0].numpy()
    return logits


def prose(count: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(0).integers(3, 200, count).tolist()
    return tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def llama(folder: Path) -> torch.nn.Module:
    return written("llama", folder)


def pieces_match(reference: torch.nn.Module, decoder: PagedDecoder) -> None:
    """Prompts and single tokens in turns, over the ends of blocks of 32 and of the memory, which grows twice."""
    tokens = prose(CONTEXT - 1)
    wanted = expected(reference, tokens)
    rooms = set()
    for count in (5, 1, 1, 23, 1, 1, 1, 40, 1, 3, 1, 40, 1):
        past = len(decoder.read)
        logits = decoder.logits(tokens[past : past + count])
        assert np.abs(logits - wanted[past + count - 1]).max() <= TOLERANCE * np.abs(wanted).max()
        rooms.add(decoder.room)
    assert rooms == {32, 96, 128}


# Grouped heads; norms of queries and keys; a part of each head rotated; learned positions, no groups.
@pytest.mark.parametrize("architecture", ["qwen3", "phi", "gpt2"])
def test_any_architecture_reads_in_pieces(architecture: str, tmp_path: Path) -> None:
    pieces_match(written(architecture, tmp_path), opened(tmp_path))


def test_prompts_and_single_tokens_share_their_caches(llama: torch.nn.Module, folder: Path) -> None:
    pieces_match(llama, opened(folder))


def test_the_most_probable_tokens_come_until_the_context_is_full(llama: torch.nn.Module, folder: Path) -> None:
    tokens = prose(CONTEXT - 5)
    found = list(opened(folder).answer(tokens))
    assert len(found) == 6
    assert found == expected(llama, tokens + found)[len(tokens) - 1 : -1].argmax(1).tolist()


def test_what_two_prompts_begin_with_is_read_once(llama: torch.nn.Module, folder: Path) -> None:
    decoder, tokens = opened(folder), prose(40)
    first = list(itertools.islice(decoder.answer(tokens), 3))
    assert decoder.known([*tokens, first[0], 7]) == 41
    assert decoder.known(tokens) == 39
    other = [*tokens[:20], *reversed(tokens[20:])]
    assert decoder.known(other) == 20
    again = list(itertools.islice(decoder.answer(other), 3))
    assert again == expected(llama, other + again)[len(other) - 1 : -1].argmax(1).tolist()


def test_shapes_of_the_form_for_one_token_are_known(llama: torch.nn.Module, folder: Path) -> None:
    """What the form is for: OpenVINO computes no shape of a layer when it runs, and adds in its linears."""
    del llama
    decoder = opened(folder)
    nodes = {
        name: getattr(decoder, name).get_compiled_model().get_runtime_model().get_ops() for name in ("many", "one")
    }
    kinds = {name: [node.get_rt_info()["layerType"].astype(str) for node in nodes[name]] for name in nodes}
    linears = [node for node in nodes["one"] if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"]
    assert linears
    assert all(node.get_output_partial_shape(0).is_static for node in linears)
    assert kinds["one"].count("Eltwise") < kinds["many"].count("Eltwise")


def test_logits_of_a_prompt_are_those_of_its_last_token_alone(llama: torch.nn.Module, folder: Path) -> None:
    del llama
    decoder = opened(folder)
    decoder.logits(prose(9))
    assert decoder.many.get_output_tensor(0).shape[0] == 1


def test_windows_are_told_from_all_before(llama: torch.nn.Module, folder: Path, tmp_path: Path) -> None:
    del llama
    assert attends_to_all_before(core().read_model(folder / MODEL_FILE))
    written("gemma3_text", tmp_path)
    assert not attends_to_all_before(core().read_model(tmp_path / MODEL_FILE))


def test_what_openvino_refuses_is_an_error(llama: torch.nn.Module, folder: Path) -> None:
    del llama
    with pytest.raises(ModelError, match="paged attention"):
        open_paged(core().read_model(folder / MODEL_FILE), threads=1, context_length=8, INFERENCE_PRECISION_HINT="no")
