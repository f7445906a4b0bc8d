"""Language models for onnxruntime-genai: what the files compute, and what it generates from the folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime_genai
import pytest
import torch

import qcompile
from qcompile import backends
from qcompile.backends import Lowered
from qcompile.backends.onnxruntime.generation import lower_generator
from qcompile.decoder_inputs import complete
from qcompile.errors import UnsupportedError
from qcompile.generation import Generation
from qcompile.models.random_decoders import random_decoder
from tests.backends.portable import parse

GENERATION = Generation(context_length=40, end=(2,), begin=1)
IDS = np.random.default_rng(0).integers(3, 256, (2, 12))


@dataclasses.dataclass(frozen=True)
class Written:
    folder: Path
    lowered: Lowered
    module: torch.nn.Module
    model: ir.Model


# Grouped heads; norms of queries and keys; windows, whose Attention stays.
@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp(request.param)
    module = random_decoder(request.param)[0].model
    module.save_pretrained(source)
    model = qcompile.trace(source)
    return Written(folder, lower_generator(model, folder, GENERATION), module, model)


def logits(written: Written, file: str) -> np.ndarray:
    """Logits of a prompt of 7 tokens and of five more, one after the other."""
    session = backends.get("onnxruntime").open_artifact(written.folder / file)
    taken = {value.name for value in ir.load(written.folder / file).graph.inputs}
    past: dict[str, np.ndarray] = {}
    found = []
    for start, end in ((0, 7), *((at, at + 1) for at in range(7, 12))):
        feed = complete(written.model.graph.inputs, {"input_ids": IDS[:, start:end], **past})
        results = session.run({name: array for name, array in feed.items() if name in taken})
        found.append(results.pop("logits"))
        past = {name.replace("present", "past_key_values"): array for name, array in results.items()}
    return np.concatenate(found, axis=1)


def expected(written: Written) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = written.module(input_ids=torch.tensor(IDS)).logits.numpy()
    return result


def test_logits_of_every_position(written: Written) -> None:
    wanted = expected(written)
    np.testing.assert_allclose(logits(written, "every_position.onnx"), wanted, atol=2e-6 * np.abs(wanted).max())


def test_logits_of_the_last_positions(written: Written) -> None:
    wanted = expected(written)
    np.testing.assert_allclose(logits(written, "model.onnx"), wanted[:, 6:], atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("batch", "prompt"), [(1, 9), (1, 1), (2, 7)])
def test_genai_generates_the_tokens_of_transformers(written: Written, batch: int, prompt: int) -> None:
    model = onnxruntime_genai.Model(str(written.folder))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(batch_size=batch, max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    ids = IDS[:batch, :prompt]
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    wanted = written.module.generate(
        torch.tensor(ids), attention_mask=torch.ones(ids.shape), max_length=32, do_sample=False, pad_token_id=2
    )
    for index, row in enumerate(wanted.tolist()):
        assert list(generator.get_sequence(index))[: len(row)] == row


def test_a_second_question_goes_on_in_the_same_cache(written: Written) -> None:
    """The last token of an answer is not in the cache yet, and append_tokens would count on it: step back behind it."""
    model = onnxruntime_genai.Model(str(written.folder))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(IDS[0, :4].astype(np.int32))
    generator.generate_next_token()
    so_far = generator.get_sequence(0)
    generator.rewind_to(len(so_far) - 2)
    generator.append_tokens(np.array([*so_far[-2:], *IDS[0, 4:]], np.int32))
    told = np.array([[*so_far, *IDS[0, 4:]]])
    with torch.no_grad():
        wanted = written.module(input_ids=torch.tensor(told)).logits.numpy()[0, -1]
    np.testing.assert_allclose(generator.get_logits().ravel(), wanted, atol=2e-6 * np.abs(wanted).max())


def test_both_files_read_the_same_weights(written: Written) -> None:
    assert written.lowered.files == ("model.onnx", "every_position.onnx", "model.onnx.data", "genai_config.json")
    assert {path.name for path in written.folder.iterdir()} == set(written.lowered.files)
    for file in ("model.onnx", "every_position.onnx"):
        big = [
            each
            for each in ir.load(written.folder / file).graph.initializers.values()
            if each.const_value.nbytes > 1024
        ]
        assert {str(each.const_value.location) for each in big} == {"model.onnx.data"}


def test_shared_buffers_where_the_cache_is_written_in_place(written: Written) -> None:
    config = json.loads((written.folder / "genai_config.json").read_text(encoding="utf-8"))
    stays = [finding.reason for finding in written.lowered.findings if "in place" in finding.reason]
    operators = {node.op_type for node in ir.load(written.folder / "model.onnx").graph}
    assert config["search"]["past_present_share_buffer"] == (not stays) == ("GroupQueryAttention" in operators)
    assert bool(stays) == ("Attention" in operators) == (written.module.config.model_type == "gemma3_text")


@pytest.fixture(scope="module")
def integers(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The same with the cache in 8 bits, where it is written in place."""
    recipe = qcompile.Recipe("caches", ("quantize_caches",))
    samples = [{"input_ids": row[None]} for row in np.random.default_rng(1).integers(3, 256, (8, 20))]
    folder = tmp_path_factory.mktemp("integers")
    model = qcompile.rewrite(written.model, recipe, calibration=samples, verify=False)
    return dataclasses.replace(written, folder=folder, lowered=lower_generator(model, folder, GENERATION))


def test_a_cache_in_8_bits(integers: Written) -> None:
    """Tokens behind a cache read integers: close to float, and not equal; a prompt reads none."""
    wanted, found = expected(integers), logits(integers, "every_position.onnx")
    range_ = np.abs(wanted).max()
    np.testing.assert_allclose(found[:, :7], wanted[:, :7], atol=2e-6 * range_)
    np.testing.assert_allclose(found[:, 7:], wanted[:, 7:], atol=0.05 * range_)
    stays = [each.reason for each in integers.lowered.findings if each.layer == "cache"]
    assert bool(stays) == (integers.module.config.model_type == "gemma3_text")
    assert bool(stays) == np.allclose(found[:, 7:], wanted[:, 7:], rtol=0, atol=2e-6 * range_)


def test_the_file_of_genai_holds_integers(integers: Written) -> None:
    kinds = {}
    for file in ("model.onnx", "every_position.onnx"):
        graph = ir.load(integers.folder / file).graph
        kinds[file] = {value.dtype for value in (*graph.inputs, *graph.outputs) if len(value.shape) == 4}
    stays = integers.module.config.model_type == "gemma3_text"
    assert kinds["model.onnx"] == {ir.DataType.FLOAT if stays else ir.DataType.INT8}
    assert kinds["every_position.onnx"] == {ir.DataType.FLOAT}


def test_genai_goes_on_in_a_cache_of_integers(integers: Written) -> None:
    """A prompt, two tokens, and three at once, read in one buffer by genai and one after the other by the session."""
    model = onnxruntime_genai.Model(str(integers.folder))
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=32, do_sample=False)
    generator = onnxruntime_genai.Generator(model, settings)
    session = backends.get("onnxruntime").open_artifact(integers.folder / "every_position.onnx")
    past: dict[str, np.ndarray] = {}
    for start, end in ((0, 7), (7, 8), (8, 9), (9, 12)):
        generator.append_tokens(IDS[0, start:end].astype(np.int32))
        feed = complete(integers.model.graph.inputs, {"input_ids": IDS[:1, start:end], **past})
        results = session.run(feed)
        wanted = results.pop("logits")[0, -1]
        past = {name.replace("present", "past_key_values"): array for name, array in results.items()}
        np.testing.assert_allclose(generator.get_logits().ravel(), wanted, atol=2e-6 * np.abs(wanted).max())


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = parse("(int64[B,S] ids) => (float[B,S,8] logits) { logits = Gather (table, ids) }",
                  table=np.zeros((5, 8), np.float32))  # fmt: skip
    with pytest.raises(UnsupportedError, match="no attention reads and writes a cache"):
        lower_generator(model, tmp_path, GENERATION)
