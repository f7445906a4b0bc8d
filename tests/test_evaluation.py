"""The measured loss of a language model is that of transformers, and its distance from float that of the logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile import Artifact, backends
from qcompile.errors import InputError, ModelError, RecipeError
from qcompile.evaluation import Evaluation, evaluate, open_decoder
from qcompile.evaluation_scores import divergence
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.models.texts import held_out_texts
from qcompile.text_tokenizer import open_tokenizer, read_ids

WINDOW, STRIDE = 32, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, and a text beside it."""
    pytest.importorskip("transformers")
    path = write_decoder_folder(tmp_path_factory.mktemp("decoder"))
    (path / "text.txt").write_text(held_out_texts(1)[0][:300], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def traced(folder: Path) -> ir.Model:
    return qcompile.trace(folder)


@pytest.fixture(scope="module", params=backends.BACKENDS)
def artifact(traced: ir.Model, request: pytest.FixtureRequest) -> Artifact:
    pytest.importorskip(request.param)
    return qcompile.compile(traced, "float", backend=request.param, tune="none", verify=False)


@pytest.fixture(scope="module")
def quantized(traced: ir.Model) -> Artifact:
    return qcompile.compile(traced, "w4a16-rtn", tune="none", verify=False)


def ids_of(folder: Path) -> np.ndarray:
    return read_ids(folder / "text.txt", open_tokenizer(folder))


def guides_nats(folder: Path) -> float:
    """The loop of Hugging Face's guide to perplexity; of each token, so that windows of all lengths count alike."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(ids_of(folder))[None]
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], STRIDE):
        end = min(begin + WINDOW, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : previous_end - begin] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids[:, begin:end], labels=labels).loss) * scored
        count, previous_end = count + scored, end
        if end == ids.shape[1]:
            break
    assert count == ids.shape[1] - 1
    return total / count


def test_nats_are_those_of_the_guide(artifact: Artifact, folder: Path) -> None:
    stages = []
    found = evaluate(
        artifact,
        folder / "text.txt",
        tokenizer=folder,
        window=WINDOW,
        stride=STRIDE,
        progress=lambda stage, part: stages.append((stage, part)),
    )
    assert found.nats == pytest.approx(guides_nats(folder), rel=1e-5)
    assert found.perplexity == math.exp(found.nats)
    assert found.tokens == len(ids_of(folder)) - 1
    assert (found.float_nats, found.divergence, found.agreement) == (None, None, None)
    assert "--against" in found.summary()
    assert stages == sorted(stages, key=lambda stage: (stage[0] == "evaluating", stage[1]))
    assert stages[-1] == ("evaluating", 1.0)


def test_distance_from_float_is_that_of_the_logits(quantized: Artifact, folder: Path, traced: ir.Model) -> None:
    ids = ids_of(folder)
    found = evaluate(quantized, folder / "text.txt", against=folder, window=len(ids), stride=1)
    with_itself = evaluate(quantized, folder / "text.txt", tokenizer=folder, window=len(ids), stride=1)
    assert found.nats == with_itself.nats
    assert found.float_nats == pytest.approx(guides_nats_whole(folder), rel=1e-5)
    logits = open_decoder(quantized).logits(ids[None, :-1])[0]
    exact = qcompile.compile(traced, "float", tune="none", verify=False)
    expected = open_decoder(exact).logits(ids[None, :-1])[0]
    distances = divergence(expected, logits)
    assert found.divergence == pytest.approx(distances.mean(), rel=1e-6)
    assert found.divergence_99 == pytest.approx(np.percentile(distances, 99), rel=1e-6)
    assert found.agreement == (expected.argmax(-1) == logits.argmax(-1)).mean()
    assert 0 < found.divergence < found.divergence_99
    assert 0 < found.agreement < 1
    for words in (f"{found.float_nats:.4f}", f"{found.agreement:.2%}", f"{found.nats - found.float_nats:+.4f}"):
        assert words in found.summary()


def guides_nats_whole(folder: Path) -> float:
    from transformers import AutoModelForCausalLM

    ids = torch.from_numpy(ids_of(folder))[None]
    with torch.no_grad():
        return float(AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss)


def test_float_is_at_no_distance_from_itself(artifact: Artifact, folder: Path, traced: ir.Model) -> None:
    found = evaluate(artifact, folder / "text.txt", against=traced, tokenizer=folder, window=WINDOW, stride=STRIDE)
    assert found.agreement == 1.0
    assert found.divergence is not None
    assert abs(found.divergence) < 1e-9
    assert found.nats == pytest.approx(found.float_nats, rel=1e-6)


def test_what_follows_is_computed_from_the_cache(artifact: Artifact, folder: Path) -> None:
    ids = np.stack([ids_of(folder)[:12], ids_of(folder)[12:24]])
    model = open_decoder(artifact)
    whole = model.logits(ids)
    pieces = [model.logits(ids[:, :7]), model.following(ids[:, 7:8]), model.following(ids[:, 8:])]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_array_equal(model.logits(ids), whole)  # of a text from its beginning, whatever came before


def test_what_is_infinite_is_null_in_json() -> None:
    found = Evaluation(Path("out"), "onnxruntime", 1, 8, 4, 1000.0, float_nats=1.0, divergence=np.inf)
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (said["perplexity"], said["divergence"], said["nats"]) == (None, None, 1000.0)
    assert said["float_perplexity"] == pytest.approx(np.e)
    assert found.perplexity == np.inf


def test_a_model_without_tokenizer_is_refused(quantized: Artifact, folder: Path) -> None:
    with pytest.raises(InputError, match="--tokenizer"):
        evaluate(quantized, folder / "text.txt")


def test_windows_are_checked_before_the_models_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stride 8"):
        evaluate(tmp_path, tmp_path / "text.txt", window=8, stride=8)


def test_the_tokenizer_of_a_larger_model_is_refused(quantized: Artifact, folder: Path, tmp_path: Path) -> None:
    first = (folder / "text.txt").read_text().split()[0]
    said = json.loads((folder / "tokenizer.json").read_text())
    said["added_tokens"].append({**said["added_tokens"][0], "id": 256, "content": first})
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="token 256, and the model knows 256"):
        evaluate(quantized, folder / "text.txt", tokenizer=tmp_path)


def decoder(text: str, *, vocabulary: int = 256, likely: float = 9.0) -> ir.Model:
    """A model of this signature, whose tensor `hot` expects every token to come again."""
    constants = {"depth": np.array(vocabulary), "values": np.array([0, likely], dtype=np.float32)}
    text = f'<ir_version: 10, opset_import: ["" : 21]> decoder {text}'
    return ir.from_onnx_text(text, initializers=[ir.tensor(array, name=name) for name, array in constants.items()])


AGAIN = """(int64[batch, sequence] input_ids) => (float[batch, sequence, vocabulary] logits)
{ logits = OneHot(input_ids, depth, values) }"""


def compiled(model: ir.Model) -> Artifact:
    return qcompile.compile(model, "float", tune="none", verify=False)


def test_a_model_without_cache_is_evaluated(folder: Path) -> None:
    artifact = compiled(decoder(AGAIN))
    found = evaluate(artifact, folder / "text.txt", tokenizer=folder)
    ids = ids_of(folder)
    expected = np.log(np.exp(9.0) + 255) - 9.0 * (ids[1:] == ids[:-1]).mean()
    assert found.nats == pytest.approx(expected, rel=1e-6)
    assert open_decoder(artifact).vocabulary == 256
    with pytest.raises(ModelError, match="no cache"):
        open_decoder(artifact).following(ids[None])


def test_a_float_model_with_other_tokens_is_refused(folder: Path) -> None:
    artifact, other = compiled(decoder(AGAIN)), decoder(AGAIN, vocabulary=300)
    with pytest.raises(ModelError, match="knows 300 tokens, and the artifact 256"):
        evaluate(artifact, folder / "text.txt", against=other, tokenizer=folder)


@pytest.mark.parametrize("likely", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(likely: float, folder: Path) -> None:
    with pytest.raises(ModelError, match="behind token 0 are not finite"):
        evaluate(compiled(decoder(AGAIN, likely=likely)), folder / "text.txt", tokenizer=folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "(int64[batch, 4] x) => (float[batch, 4, 256] logits) { logits = OneHot(x, depth, values) }",
            "no input_ids or no logits",
        ),
        (
            "(int64[batch, 4] input_ids) => (float[batch, 4, 256] y) { y = OneHot(input_ids, depth, values) }",
            "no logits",
        ),
        (
            "(int64[batch, s] input_ids, int64[batch, s] kinds) => (float[batch, s, 256] logits) "
            "{ sum = Add(input_ids, kinds)  logits = OneHot(sum, depth, values) }",
            "inputs kinds",
        ),
    ],
)
def test_what_is_no_language_model_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        open_decoder(compiled(decoder(text)))
