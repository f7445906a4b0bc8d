"""Texts as token ids, by the tokenizer.json that lies beside a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompile.errors import InputError, MissingDependencyError, ModelError, first_line
from qcompile.plain_files import check_plain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a model, with the special tokens that its tokenizer_config.json names.

    Attributes:
        tokenizer: of the package tokenizers; it neither cuts nor pads.
        begins: id of the token at the beginning of a text; None: the model has none.
        ends: id of the token at the end of a text; None: the model has none.
    """

    tokenizer: Tokenizer
    begins: int | None
    ends: int | None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; `special`: with the tokens that the model's tokenizer adds to every text."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def open_tokenizer(path: Path) -> TextTokenizer:
    """Open a tokenizer.json, given itself or by its folder.

    It adds to a text what tokenizer.json says: as in transformers, `add_bos_token` of the tokenizer_config.json beside
    it is passed over.

    Raises:
        MissingDependencyError: the package tokenizers is not installed.
        ModelError: a file is missing or damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("tokenizers", "it is not installed", "pip install 'qcompile[hf]'") from error
    file = path / TOKENIZER if path.is_dir() else path
    try:
        check_plain(file)
        tokenizer = Tokenizer.from_buffer(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(str(file), f"it is no tokenizer: {first_line(error)}", "Give the model's own") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    said = read_settings(file.parent / SETTINGS)
    begins, ends = (_token(tokenizer, said.get(name)) for name in ("bos_token", "eos_token"))
    return TextTokenizer(tokenizer, begins, ends)


def read_ids(file: Path, tokenizer: TextTokenizer) -> np.ndarray:
    """Return the tokens of a text file, int64 [count].

    Raises InputError where it cannot be read, is not UTF-8, or is too short for anything to be predicted.
    """
    mend = "Give a text file in UTF-8"
    try:
        check_plain(file)
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"it cannot be read: {first_line(error)}", mend) from error
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise InputError(str(file), f"it has {len(ids)} tokens, and each is scored by what is before it", mend)
    return np.asarray(ids, dtype=np.int64)


def read_settings(file: Path) -> dict[str, Any]:
    """Return what a JSON file beside a model says; nothing where there is none; raises ModelError for a damaged one."""
    if not file.exists():
        return {}
    try:
        check_plain(file)
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(file), f"it cannot be read: {first_line(error)}", "Save the model again") from error
    if not isinstance(said, dict):
        raise ModelError(str(file), "it holds no object", "Save the model again")
    return said


def _token(tokenizer: Tokenizer, said: Any) -> int | None:
    """Return the id of a special token, which older files describe by an object."""
    content = said.get("content") if isinstance(said, dict) else said
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return None if found is None else int(found)
