"""Conversations with folders for the runtimes' own libraries for generation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import qcompile
from qcompile.artifact import Artifact
from qcompile.chat import Answer, Message
from qcompile.cli import app
from qcompile.cli.chatting import speed
from qcompile.decoder_inputs import complete
from qcompile.errors import ArtifactError, InputError, ModelError, UnsupportedError
from tests.language_models import write_language_model

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("openvino_genai")

BACKENDS = ("onnxruntime", "openvino")
QUESTION = Message("user", "one two three")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module", params=BACKENDS)
def artifact(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp(request.param) / "out"
    return qcompile.compile(
        source, "w4a16-rtn", backend=request.param, output=output, output_format="genai", tune="none"
    )


def _answer(artifact: Artifact, messages: list[Message], count: int = 12) -> Answer:
    shown: list[str] = []
    answer = artifact.open_chat().answer(messages, max_new_tokens=count, show=lambda piece: not shown.append(piece))
    assert "".join(shown) == answer.text
    return answer


def test_an_answer_comes_in_pieces_with_its_times(artifact: Artifact) -> None:
    answer = _answer(artifact, [QUESTION])
    assert 1 <= answer.new_tokens <= 12
    assert answer.prompt_tokens == len("user: one two three\nassistant: ")
    assert answer.first_token_s > 0
    assert f"{answer.new_tokens} tokens" in speed(answer)


def test_the_answer_is_that_of_the_model(artifact: Artifact, source: Path) -> None:
    """The most likely tokens by the artifact itself, read one sequence at a time, with no cache."""
    answer = _answer(artifact, [QUESTION], count=6)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokens = tokenizer("user: one two three\nassistant: ", add_special_tokens=False)["input_ids"]
    inputs = qcompile.trace(source).graph.inputs
    for _ in range(answer.new_tokens):
        logits = artifact.run(complete(inputs, {"input_ids": np.array([tokens])}))["logits"]
        tokens.append(int(logits[0, -1].argmax()))
    assert tokenizer.decode(tokens[-answer.new_tokens :], skip_special_tokens=True) == answer.text


def test_a_conversation_that_goes_on_is_answered_like_a_new_one(artifact: Artifact) -> None:
    talk = artifact.open_chat()
    first = talk.answer([QUESTION], max_new_tokens=8, show=lambda _: True)
    said = [QUESTION, Message("assistant", first.text), Message("user", "and?")]
    again = talk.answer(said, max_new_tokens=8, show=lambda _: True)
    assert again.text == _answer(artifact, said, count=8).text


def test_whoever_has_seen_enough_ends_the_answer(artifact: Artifact) -> None:
    pieces: list[str] = []
    artifact.open_chat().answer([QUESTION], max_new_tokens=200, show=lambda piece: bool(pieces.append(piece)))
    assert len(pieces) <= 2


def test_the_command_answers_and_keeps_the_conversation(artifact: Artifact) -> None:
    one = CliRunner().invoke(app, ["chat", str(artifact.path), "--prompt", "one two three", "--max-new-tokens", "5"])
    assert one.exit_code == 0, one.output
    assert "tokens/s" in one.stderr
    two = CliRunner().invoke(
        app, ["chat", str(artifact.path), "--max-new-tokens", "5"], input="one two three\nand?\n\n"
    )
    assert two.exit_code == 0, two.output
    assert two.stderr.count("tokens/s") == 2
    assert two.stdout.startswith(one.stdout)


def test_more_than_the_context_is_refused(artifact: Artifact) -> None:
    with pytest.raises(InputError):
        artifact.open_chat().answer([Message("user", "word " * 200)], max_new_tokens=4, show=lambda _: True)


def test_a_damaged_folder_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in artifact.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        qcompile.load(copy)


def test_what_is_no_language_model_does_not_talk(artifact: Artifact) -> None:
    without = {name: entry for name, entry in artifact.manifest.files.items() if name != "tokenizer.json"}
    plain = Artifact(artifact.path, dataclasses.replace(artifact.manifest, files=without), artifact.report)
    with pytest.raises(ArtifactError, match="output_format"):
        plain.open_chat()


def test_formats_that_do_not_fit_are_refused_at_once(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no such format"):
        qcompile.compile(source, output_format="zip")
    with pytest.raises(UnsupportedError, match="comes without one"):
        qcompile.compile(b"model", output_format="genai")
    without = write_language_model(tmp_path / "without")
    (without / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        qcompile.compile(without, "w4a16-rtn", output_format="genai")
