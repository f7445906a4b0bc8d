"""The tokenizer of a GGUF file, and how it splits text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, pre_tokenizers

from qcompile.errors import ModelError, UnsupportedError
from qcompile.frontend.gguf import open_gguf
from qcompile.frontend.gguf_tokenizer import rule_of
from tests.frontend.gguf_files import words, write_decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    open_gguf(write_decoder(tmp_path / "a.gguf")).save_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_it_encodes_as_the_file_says(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = words(80)
    assert [tokens[number] for number in tokenizer("<|from|>ab a<|end|>")["input_ids"]] == [
        "<|from|>",
        "ab",
        "Ġa",
        "<|end|>",
    ]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|from|>", "<|pad|>")
    assert tokenizer.model_max_length == 128


def test_nothing_of_the_machine_is_in_it(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings.keys().isdisjoint({"is_local", "local_files_only", "backend", "name_or_path"})
    assert str(folder.parent) not in json.dumps(settings)


def test_no_token_is_made_up(folder: Path) -> None:
    """The class in transformers for byte-level encoding adds an <|endoftext|> that the model has no row for."""
    assert max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values()) == 79
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "unk_token" not in settings


def test_digits_are_split_off_first(folder: Path) -> None:
    """Two spaces before a digit are one piece, where a space before a letter goes with the letter."""
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    by_steps = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in ("a  12  b", "\n\n 3", "it's 4'll 5", "x½Ⅷ \t7 ", "12", "   "):
        pieces = [piece for piece, _ in saved.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == [piece for piece, _ in by_steps.pre_tokenize_str(text)], text


def test_the_name_of_a_rule_is_found_again(folder: Path) -> None:
    assert rule_of(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))) == "smollm"


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False), "gpt-2"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Whitespace(), None),
        (None, None),
    ],
)
def test_rules_by_their_steps(step: object, name: str | None) -> None:
    tokenizer = {"pre_tokenizer": None if step is None else json.loads(step.__getstate__())}  # type: ignore[misc]
    assert rule_of(tokenizer) == name


@pytest.mark.parametrize(
    ("old", "new", "error", "reason"),
    [
        (b"smollm", b"smollM", UnsupportedError, "splits text by the rule 'smollM'"),
        (b"tokenizer.ggml.pre", b"tokenizer.ggml.prE", UnsupportedError, "splits text by the rule None"),
        (b"tokenizer.ggml.model", b"tokenizer.ggml.modeL", ModelError, "has no tokenizer"),
        (
            b"eos_token_id\4\0\0\0\1",
            b"eos_token_id\4\0\0\0\xff",
            ModelError,
            "transformers cannot rebuild its tokenizer",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt(
    tmp_path: Path, old: bytes, new: bytes, error: type[Exception], reason: str
) -> None:
    file = write_decoder(tmp_path / "a.gguf")
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))
    with pytest.raises(error, match=reason):
        open_gguf(file).save_tokenizer(tmp_path)
