"""The door for folders of Hugging Face: config.json and safetensors become a decoder with its cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.errors import MissingDependencyError, ModelError, UnsafeModelError
from qcompile.plain_files import check_plain

CONFIGURATION = "config.json"

_WRITE = "Give a folder as save_pretrained() writes it"


def is_folder(model: Any) -> bool:
    """Whether this is the path of a folder of Hugging Face."""
    return isinstance(model, (str, os.PathLike)) and (Path(model) / CONFIGURATION).is_file()


def read_folder(path: str | os.PathLike[str]) -> ir.Model:
    """Read a causal language model; its weights stay in their files until somebody asks for them.

    Code that comes with a model is never run.

    Raises:
        UnsafeModelError: the model needs code of its own, or has weights in pickled files only.
        MissingDependencyError: transformers is not installed.
        ModelError: a file is missing or damaged, or the model is no causal language model.
    """
    try:
        from qcompile.frontend.huggingface_export import export_decoder
    except ImportError as error:
        reason = f"it is read with transformers and accelerate ({error})"
        raise MissingDependencyError(str(path), reason, "pip install 'qcompile[hf]'") from error
    from qcompile.frontend.huggingface_weights import open_checkpoint

    folder = Path(path)
    config = _configuration(folder)
    return export_decoder(config, open_checkpoint(folder))


def _configuration(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    file = folder / CONFIGURATION
    try:
        check_plain(file)
        said = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("it holds no object")
        if "auto_map" in said:
            mend = "Use an architecture that is part of transformers"
            raise UnsafeModelError(str(folder), "its config.json asks for code of its own to be run", mend)
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise ModelError(str(file), f"it is no configuration of transformers ({error})", _WRITE) from error
