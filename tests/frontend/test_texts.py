"""A text becomes samples by the tokenizer of the model, on the command line too; what is no text is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile.calibration_data import Calibration
from qcompile.cli import inputs
from qcompile.compile_requests import cut_text
from qcompile.errors import CalibrationError, ModelError
from qcompile.frontend.texts import read_text, text_samples
from qcompile.models.decoder_folders import write_decoder_folder
from tests.cli.commands import run

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "The value of an expression is its last one, and the others are gone. " * 8


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose tokenizer begins each text with a token."""
    folder = write_decoder_folder(tmp_path_factory.mktemp("decoder"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    beginning = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = beginning
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def ids(decoder: Path) -> list[int]:
    """Tokens of the text alone."""
    found: list[int] = tokenizers.Tokenizer.from_file(str(decoder / "tokenizer.json")).encode(TEXT).ids[1:]
    return found


def test_pieces_of_a_text_are_its_tokens_in_order(decoder: Path, ids: list[int]) -> None:
    samples = text_samples(decoder, TEXT, length=100)
    assert {(name, array.dtype, len(array)) for sample in samples for name, array in sample.items()} == {
        ("input_ids", np.dtype(np.int64), 1)
    }
    assert [sample["input_ids"].shape[1] for sample in samples[:-1]] == [100] * (len(samples) - 1)
    assert np.concatenate([sample["input_ids"][0] for sample in samples]).tolist() == ids


def test_what_the_tokenizer_cuts_for_others_is_not_cut_here(decoder: Path, ids: list[int], tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "cutting")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    (sample,) = text_samples(folder, TEXT, length=len(ids))
    assert sample["input_ids"][0].tolist() == ids


def test_a_damaged_tokenizer_is_refused(decoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="it is no tokenizer"):
        text_samples(folder, TEXT)


def test_no_more_pieces_than_asked_for(decoder: Path, ids: list[int]) -> None:
    samples = text_samples(decoder, TEXT, length=10, count=3)
    assert [sample["input_ids"].shape for sample in samples] == [(1, 10)] * 3
    assert np.concatenate([sample["input_ids"][0] for sample in samples]).tolist() == ids[:30]


def test_no_more_of_a_text_is_read_than_the_pieces_may_need(decoder: Path) -> None:
    with pytest.raises(CalibrationError, match="no tokens"):
        text_samples(decoder, "\N{SNOWMAN}" * 24 + TEXT, length=2, count=1)


@pytest.mark.parametrize("text", ["", "   ", "\n\t\n"])
def test_a_blank_text_is_refused(decoder: Path, text: str) -> None:
    with pytest.raises(CalibrationError, match="it is blank"):
        text_samples(decoder, text)


def test_a_model_without_a_tokenizer_is_refused(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((decoder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        text_samples(tmp_path, TEXT)
    with pytest.raises(CalibrationError, match="without a tokenizer"):
        text_samples(tmp_path / "model.onnx", TEXT)


def test_a_file_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve\n", encoding="utf-8")
    assert read_text(path) == "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve\n"
    path.write_bytes(b"\xff\xfe")
    for broken in (path, tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(CalibrationError, match="it cannot be read as text"):
            read_text(broken)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "text.txt")
    with pytest.raises(CalibrationError, match="it is not a plain file"):
        read_text(tmp_path / "text.txt")


def test_the_command_line_calibrates_on_a_text(decoder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3, encoding="utf-8")
    for count in (None, 1):
        data = inputs.calibration(text, count, None, decoder)
        assert data is not None
        wanted = text_samples(decoder, TEXT * 3, count=count)
        assert len(wanted) == (count or 2)
        for sample, other in zip(data.data, wanted, strict=True):
            np.testing.assert_array_equal(sample["input_ids"], other["input_ids"])
    options = ["--num-calibration-samples", 1, "--no-verify", "--tune", "none", "-o", tmp_path / "out"]
    assert run("compile", decoder, "-r", "w4a16-gptq", "-c", text, *options).exit_code == 0
    artifact = qcompile.load(tmp_path / "out")
    assert artifact.manifest.calibration is not None
    assert any("gptq" in each.name for each in artifact.report.passes)


def test_a_text_file_is_calibration_data_of_a_language_model(decoder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    cut = cut_text(Calibration(str(path), 2), decoder)
    for found, wanted in zip(cut.data, text_samples(decoder, TEXT * 3, count=2), strict=True):
        np.testing.assert_array_equal(found["input_ids"], wanted["input_ids"])
    plain = Calibration([{"x": np.zeros(1)}])
    assert cut_text(plain, decoder) is plain
