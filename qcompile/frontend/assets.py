"""What belongs to a language model beside its graph: configuration and tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError, UnsupportedError, first_line
from qcompile.frontend.gguf import is_gguf_file, open_gguf
from qcompile.frontend.huggingface import is_folder
from qcompile.generation import CONFIGURATION, GENERATION, MODEL_ALONE, generation_of
from qcompile.plain_files import check_plain
from qcompile.text_tokenizer import SETTINGS, TOKENIZER

_NEEDED = (CONFIGURATION, TOKENIZER)
_SAVE = "Save the tokenizer into it: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
_OTHERS = (
    *(GENERATION, SETTINGS, "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt"),
)
"""Files of Hugging Face's tokenizers and of generation; nothing else of a folder goes into an artifact."""


def has_assets(model: Any) -> bool:
    """Whether a model comes with a configuration and a tokenizer: a GGUF file, or a folder that holds both."""
    if is_gguf_file(model):
        return True
    return is_folder(model) and all((Path(os.fspath(model)) / name).exists() for name in _NEEDED)


def check_assets(model: Any) -> None:
    """Raise UnsupportedError where a model can have no tokenizer, and ModelError where its folder has none."""
    if is_gguf_file(model):
        return
    if not is_folder(model):
        mend = "Give a Hugging Face folder or a GGUF file, or output_format='model'"
        raise UnsupportedError("tokenizer", "the model comes without one", mend)
    source = Path(os.fspath(model))
    for name in _NEEDED:
        if not (source / name).exists():
            raise ModelError(str(source), f"there is no {name} in it", _SAVE)


def check_generation(model: Any) -> None:
    """Raise, before any work, what `check_assets` does; and ModelError where files do not say how answers are made.

    UnsupportedError too for a GGUF file that splits text by a rule that is not known here.
    """
    check_assets(model)
    if is_gguf_file(model):
        open_gguf(model).check_tokenizer()
        return
    source = Path(os.fspath(model))
    try:
        json.loads((source / TOKENIZER).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = f"it is no tokenizer: {first_line(error)}"
        raise ModelError(str(source / TOKENIZER), reason, _SAVE + MODEL_ALONE) from error
    generation_of(source)


def write_assets(model: Any, folder: Path) -> tuple[str, ...]:
    """Write configuration and tokenizer of a language model into an existing folder; return the names of the files.

    Args:
        model: path of a folder of Hugging Face or of a GGUF file.
        folder: where to.

    Raises:
        UnsupportedError, ModelError: as `check_assets`; ModelError also where a file cannot be read.
    """
    check_assets(model)
    if is_gguf_file(model):
        opened = open_gguf(model)
        opened.save_tokenizer(folder)
        opened.config.save_pretrained(folder)
        return tuple(sorted(file.name for file in folder.iterdir() if file.name in (*_NEEDED, *_OTHERS)))
    source = Path(os.fspath(model))
    written = [name for name in (*_NEEDED, *_OTHERS) if (source / name).exists()]
    for name in written:
        _copy(source / name, folder / name)
    return tuple(written)


def _copy(source: Path, target: Path) -> None:
    try:
        check_plain(source)
        shutil.copyfile(source, target)
    except OSError as error:
        raise ModelError(str(source), f"it cannot be read: {error}", "Give a folder with rights") from error
