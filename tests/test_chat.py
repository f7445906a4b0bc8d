"""Conversations with folders for the runtimes' own libraries for generation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer
from typer.testing import CliRunner

import qcompile
from qcompile import backends
from qcompile.artifact import Artifact
from qcompile.chat import Answer, Message, has_template
from qcompile.cli import app
from qcompile.cli.chatting import NO_TEMPLATE, speed
from qcompile.decoder_inputs import complete
from qcompile.errors import ArtifactError, InputError, ModelError, UnsupportedError
from qcompile.evaluation import open_decoder
from qcompile.models.decoder_folders import write_decoder_folder

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("openvino_genai")

QUESTION = Message("user", "who are you")
AS_TEXT = "user: who are you\nassistant: "
"""What the template makes of the question."""

TEMPLATE = (
    "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BEGINNING = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
"""Of a tokenizer that begins each text with a token, as most do."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_decoder_folder(tmp_path_factory.mktemp("source"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that only goes on with a text: there is no template."""
    folder = write_decoder_folder(tmp_path_factory.mktemp("untaught"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = BEGINNING
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _compiled(source: Path, backend: str, output: Path) -> Artifact:
    return qcompile.compile(source, "w4a16-rtn", backend=backend, output=output, output_format="genai", tune="none")


@pytest.fixture(scope="module", params=backends.BACKENDS)
def artifact(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _compiled(source, request.param, tmp_path_factory.mktemp(request.param) / "out")


@pytest.fixture(scope="module", params=backends.BACKENDS)
def completing(request: pytest.FixtureRequest, untaught: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _compiled(untaught, request.param, tmp_path_factory.mktemp(request.param) / "out")


def _most_likely(artifact: Artifact, source: Path, tokens: list[int], count: int) -> str:
    """Text of the most likely tokens by the artifact itself, read one sequence at a time, with no cache.

    None of them by a hair: what generates keeps its cache in 8 bits and may compute in bfloat16.
    """
    tokens, inputs = list(tokens), ir.load(artifact.path / "portable.onnx").graph.inputs
    for _ in range(count):
        logits = artifact.run(complete(inputs, {"input_ids": np.array([tokens])}))["logits"]
        second, first = np.sort(logits[0, -1])[-2:]
        assert first - second > 0.03 * np.abs(logits[0, -1]).max()
        tokens.append(int(logits[0, -1].argmax()))
    text: str = AutoTokenizer.from_pretrained(source).decode(tokens[-count:], skip_special_tokens=True)
    return text


def _tokens(source: Path, text: str) -> list[int]:
    """With special tokens where the tokenizer adds any."""
    found: list[int] = AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    return found


def _answer(artifact: Artifact, messages: list[Message], count: int = 12) -> Answer:
    shown: list[str] = []
    answer = artifact.open_chat().answer(messages, max_new_tokens=count, show=lambda piece: not shown.append(piece))
    assert "".join(shown) == answer.text
    return answer


def test_an_answer_comes_in_pieces_with_its_times(artifact: Artifact, source: Path) -> None:
    answer = _answer(artifact, [QUESTION])
    assert 1 <= answer.new_tokens <= 12
    assert answer.prompt_tokens == len(_tokens(source, AS_TEXT))
    assert answer.first_token_s > 0
    assert f"{answer.new_tokens} tokens" in speed(answer)


def test_the_answer_is_that_of_the_model(artifact: Artifact, source: Path) -> None:
    answer = _answer(artifact, [QUESTION], count=6)
    assert artifact.open_chat().has_template
    assert answer.text == _most_likely(artifact, source, _tokens(source, AS_TEXT), answer.new_tokens)


def test_without_a_template_the_model_goes_on_with_the_text(completing: Artifact, untaught: Path) -> None:
    """With the token that begins a text, which the tokenizer of ONNX Runtime leaves out unless it is told."""
    talk = completing.open_chat()
    assert not talk.has_template
    said = [Message("system", "be short"), QUESTION]
    first = talk.answer(said, max_new_tokens=6, show=lambda _: True)
    tokens = _tokens(untaught, "be short\nwho are you")
    assert (tokens[0], first.prompt_tokens) == (1, len(tokens))
    assert first.text == _most_likely(completing, untaught, tokens, first.new_tokens)
    said += [Message("assistant", first.text), Message("user", "go on")]
    second = talk.answer(said, max_new_tokens=6, show=lambda _: True)
    tokens = _tokens(untaught, f"be short\nwho are you{first.text}\ngo on")
    assert second.text == _most_likely(completing, untaught, tokens, second.new_tokens)


def test_the_command_says_once_that_there_is_no_template(completing: Artifact) -> None:
    command = ["chat", str(completing.path), "--max-new-tokens", "3"]
    done = CliRunner().invoke(app, command, input="one\ntwo\n\n")
    assert done.exit_code == 0, done.output
    assert " ".join(done.stderr.split()).count(NO_TEMPLATE) == 1


def test_what_the_template_has_no_place_for_is_refused(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="the user begins") as refused:
        artifact.open_chat().answer([Message("assistant", "hello"), QUESTION], max_new_tokens=4, show=lambda _: True)
    assert "take turns" in refused.value.mend


def test_a_template_is_found_where_transformers_writes_it(tmp_path: Path) -> None:
    assert not has_template(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    for said in ("{}", "[]"):
        settings.write_text(said)
        assert not has_template(tmp_path)
    settings.write_text(json.dumps({"chat_template": TEMPLATE}))
    assert has_template(tmp_path)


def test_an_answer_from_a_cache_in_8_bits_is_that_of_the_model(source: Path, tmp_path: Path) -> None:
    """`w4a8` on ONNX Runtime: onnxruntime-genai, over a buffer of integers, and the artifact's own file agree."""
    samples = [{"input_ids": ids[None]} for ids in np.random.default_rng(0).integers(3, 256, (4, 32))]
    made = qcompile.compile(
        source, "w4a8", calibration=samples, output=tmp_path / "out", output_format="genai", tune="none"
    )
    kinds = {value.dtype for value in ir.load(made.path / "model.onnx").graph.inputs}
    assert kinds == {ir.DataType.INT64, ir.DataType.INT8}
    assert {port.dtype for port in made.manifest.inputs} == {"int64", "float32"}
    assert not made.report.not_compared
    assert {each.operator for each in made.report.layers} == {"Linear", "Embedding"}
    assert sum(each.reason == "its cache is rounded to 8 bits" for each in made.report.findings) == 2
    answer = _answer(made, [QUESTION])
    tokenizer, decoder = AutoTokenizer.from_pretrained(source), open_decoder(made)
    logits, tokens = decoder.logits(np.array([_tokens(source, AS_TEXT)])), []
    while len(tokens) < answer.new_tokens:
        tokens.append(int(logits[0, -1].argmax()))
        logits = decoder.following(np.array([tokens[-1:]]))
    assert tokenizer.decode(tokens, skip_special_tokens=True) == answer.text


def test_a_plain_model_does_not_talk_and_is_given_its_cache_in_float(source: Path, tmp_path: Path) -> None:
    samples = [{"input_ids": np.arange(3, 35)[None]}]
    settings = {"output": tmp_path / "out", "output_format": "model", "tune": "none", "verify": False}
    made = qcompile.compile(source, "w4a8", calibration=samples, **settings)
    assert not made.talks
    assert not (made.path / "tokenizer.json").exists()
    reasons = {each.reason for each in made.report.findings}
    assert "its cache stays float: the artifact can hold none in 8 bits" in reasons
    operators = {node.op_type for node in ir.load(made.model_path).graph}
    assert "Attention" in operators
    assert not operators & {"Round", "QuantizeLinear"}


def test_a_conversation_that_goes_on_is_answered_like_a_new_one(artifact: Artifact) -> None:
    talk = artifact.open_chat()
    first = talk.answer([QUESTION], max_new_tokens=8, show=lambda _: True)
    said = [QUESTION, Message("assistant", first.text), Message("user", "go on")]
    again = talk.answer(said, max_new_tokens=8, show=lambda _: True)
    assert again.text == _answer(artifact, said, count=8).text


def test_whoever_has_seen_enough_ends_the_answer(artifact: Artifact) -> None:
    pieces: list[str] = []
    artifact.open_chat().answer([QUESTION], max_new_tokens=200, show=lambda piece: bool(pieces.append(piece)))
    assert len(pieces) <= 2


def test_the_command_answers_and_keeps_the_conversation(artifact: Artifact) -> None:
    one = CliRunner().invoke(app, ["chat", str(artifact.path), "--prompt", "who are you", "--max-new-tokens", "5"])
    assert one.exit_code == 0, one.output
    assert "tokens/s" in one.stderr
    two = CliRunner().invoke(app, ["chat", str(artifact.path), "--max-new-tokens", "5"], input="who are you\ngo on\n\n")
    assert two.exit_code == 0, two.output
    assert two.stderr.count("tokens/s") == 2
    assert two.stdout.startswith(one.stdout)
    assert NO_TEMPLATE not in " ".join(two.stderr.split())


def test_more_than_the_context_is_refused(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="the model knows 2048"):
        artifact.open_chat().answer([Message("user", "word " * 2000)], max_new_tokens=4, show=lambda _: True)


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


def test_a_model_talks_where_it_has_a_tokenizer(source: Path, tmp_path: Path) -> None:
    settings = {"tune": "none", "verify": False}
    assert qcompile.compile(source, "w4a16-rtn", output=tmp_path / "talks", **settings).talks
    without = write_decoder_folder(tmp_path / "without")
    (without / "tokenizer.json").unlink()
    assert not qcompile.compile(without, "w4a16-rtn", output=tmp_path / "silent", **settings).talks


def test_formats_that_do_not_fit_are_refused_at_once(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no such format"):
        qcompile.compile(source, output_format="zip")
    with pytest.raises(UnsupportedError, match="comes without one"):
        qcompile.compile(b"model", output_format="genai")
    without = write_decoder_folder(tmp_path / "without")
    (without / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        qcompile.compile(without, "w4a16-rtn", output_format="genai")


@pytest.mark.parametrize("folder", ["", "missing", "of Hugging Face", "a file"])
def test_what_is_no_artifact_does_not_talk(folder: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("{}")
    path = source if folder == "of Hugging Face" else tmp_path / folder
    done = CliRunner().invoke(app, ["chat", str(path), "--prompt", "hello"])
    assert done.exit_code == 6
    wanted = (
        "Compile it first: qcompile compile" if folder == "of Hugging Face" else "Give the folder that qcompile compile"
    )
    assert wanted in " ".join(done.stderr.split())


def test_bench_of_a_folder_that_talks_measures_answers(artifact: Artifact) -> None:
    command = ["bench", str(artifact.path), "--seconds", "0.1", "--threads", "1"]
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["backend"] == artifact.backend
    assert found["answers"] >= 3
    assert found["prompt_tokens"] > 64, "questions differ from their beginning on"
    assert 0 < found["new_tokens"] <= 32
    assert 0 < found["first_token_s"] < 10
    assert (found["tokens_per_s"] > 0) == (found["new_tokens"] > 1)
    said = CliRunner().invoke(app, command).stdout
    assert "tokens/s" in said
    assert artifact.backend in said
    refused = CliRunner().invoke(app, [*command, "--dim", "sequence=8"])
    assert refused.exit_code == 2
    assert "measured by its answers" in refused.stderr


def test_what_is_no_text_is_asked_all_the_same_and_nothing_is_refused(artifact: Artifact) -> None:
    found = CliRunner().invoke(app, ["chat", str(artifact.path), "--max-new-tokens", "2"], input=b"h\xff\xe9\n")
    assert found.exit_code == 0, found.output
    found = CliRunner().invoke(app, ["chat", str(artifact.path), "--prompt", " "])
    assert found.exit_code != 0
    assert "--prompt: it is blank" in found.output
