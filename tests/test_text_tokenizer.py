"""Texts become the tokens that transformers makes of them, special ones among them; bad files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompile.errors import InputError, ModelError
from qcompile.models.decoder_folders import write_decoder_folder
from qcompile.text_tokenizer import open_tokenizer, read_ids

TEXT = "The value of an expression is\nits last one.</s> And so on"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return write_decoder_folder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture
def folder(decoder: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer, which a test may change."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((decoder / name).read_bytes())
    return tmp_path


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize(
    ("settings", "tokenizer", "added"),
    [
        ({}, {}, []),
        ({}, {"post_processor": None}, []),
        ({}, {"post_processor": TEMPLATE}, [1]),
        ({"add_bos_token": True}, {}, []),
        ({"add_bos_token": False}, {"post_processor": TEMPLATE}, [1]),
    ],
)
def test_special_tokens_are_those_of_transformers(
    settings: dict[str, Any], tokenizer: dict[str, Any], added: list[int], folder: Path
) -> None:
    from transformers import AutoTokenizer

    change(folder / "tokenizer_config.json", **settings)
    change(folder / "tokenizer.json", **tokenizer)
    opened = open_tokenizer(folder)
    ids = opened.encode(TEXT)
    assert ids == AutoTokenizer.from_pretrained(folder).encode(TEXT)
    plain = opened.encode(TEXT, special=False)
    assert ids == [*added, *plain]
    assert opened.decode(plain) == TEXT.replace("</s>", "")


@pytest.mark.parametrize(
    ("said", "found"),
    [("</s>", 2), ({"content": "</s>", "special": True}, 2), (None, None), ("<none>", None), ({}, None)],
)
def test_the_token_at_the_end(said: Any, found: int | None, folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=said)
    assert (open_tokenizer(folder).begins, open_tokenizer(folder).ends) == (1, found)


def test_without_settings_no_token_is_special(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert (open_tokenizer(folder).begins, open_tokenizer(folder).ends) == (None, None)


def test_a_text_is_neither_cut_nor_padded(folder: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    change(folder / "tokenizer.json", truncation=cut, padding={**pad, "pad_to_multiple_of": None})
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer = open_tokenizer(folder / "tokenizer.json")
    ids = read_ids(folder / "text.txt", tokenizer)
    assert tokenizer.decode(ids) == TEXT.replace("</s>", "")
    assert 0 not in ids


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"a"])
def test_texts_that_cannot_be_scored_are_refused(content: bytes, folder: Path) -> None:
    (folder / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"text\.txt"):
        read_ids(folder / "text.txt", open_tokenizer(folder))


def test_a_text_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_ids(folder, open_tokenizer(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"])
def test_damaged_files_are_refused(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        open_tokenizer(folder)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)
