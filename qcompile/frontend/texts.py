"""Calibration samples of a language model from plain text."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import CalibrationError
from qcompile.frontend.assets import write_assets
from qcompile.frontend.gguf import is_gguf_file
from qcompile.frontend.huggingface import is_folder
from qcompile.plain_files import check_plain
from qcompile.text_tokenizer import TextTokenizer, open_tokenizer


def text_samples(
    model: str | os.PathLike[str], text: str, *, length: int = 512, count: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Return pieces of a text as calibration samples of a language model: {"input_ids": int64 [1, length]}.

    The last piece may be shorter. No tokens of beginning or end are added.

    Args:
        model: a Hugging Face folder or a GGUF file, whose tokenizer is used.
        text: of the kind that the model will see.
        length: tokens of each piece.
        count: most pieces; None: the whole text. Only as much of the text is read as they may need.

    Raises:
        CalibrationError: the text is blank or has no tokens, or the model is neither.
        ModelError: the folder has no tokenizer; MissingDependencyError: tokenizers (extra `hf`) is not installed.
    """
    tokenizer = _tokenizer(model)
    # A token is seldom longer than these characters on average; where it is, there are fewer pieces.
    used = text if count is None else text[: count * length * 12]
    ids = np.asarray(tokenizer.encode(used, special=False), np.int64)
    pieces = [{"input_ids": ids[None, start : start + length]} for start in range(0, ids.size, length)]
    if not used.strip():
        raise CalibrationError("calibration text", "it is blank", "Give text of the kind that the model will see")
    if not pieces:
        raise CalibrationError("calibration text", "it has no tokens", "Give text of the kind that the model will see")
    return pieces[:count]


def read_text(path: Path) -> str:
    """Return the content of a text file, UTF-8; raises CalibrationError where it is none."""
    try:
        check_plain(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(str(path), f"it cannot be read as text: {error}", "Give a UTF-8 text file") from error


def _tokenizer(model: Any) -> TextTokenizer:
    if not (is_folder(model) or is_gguf_file(model)):
        mend = "Give an .npz file of its inputs, or as the model a Hugging Face folder or a GGUF file"
        raise CalibrationError("calibration text", "the model comes without a tokenizer", mend)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        write_assets(model, Path(folder))
        return open_tokenizer(Path(folder))
