"""The door for folders of Hugging Face: config.json and safetensors become a decoder with its cache."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.errors import MissingDependencyError, ModelError, UnsafeModelError
from qcompile.generation import CONFIGURATION
from qcompile.plain_files import check_plain

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
        UnsupportedError: its layers choose among experts.
    """
    config, weights = _opened(Path(path))
    from qcompile.frontend.huggingface_export import export_decoder

    # Not before: what is not installed is said by `_opened`.
    return export_decoder(config, weights)


def open_folder(folder: Path) -> tuple[Any, Mapping[str, ir.TensorProtocol]]:
    """Return the configuration of a causal language model, and its weights under the names of its `state_dict`.

    The weights stay in their files. Raises as `read_folder`; a weight that is missing is missing.
    """
    config, weights = _opened(folder)
    from qcompile.frontend.huggingface_export import parameters

    return config, parameters(config, weights)


def _opened(folder: Path) -> tuple[Any, Mapping[str, ir.TensorProtocol]]:
    try:
        import qcompile.frontend.huggingface_export  # noqa: F401  # is it there?
    except ImportError as error:
        reason = f"it is read with transformers and accelerate ({error})"
        raise MissingDependencyError(str(folder), reason, "pip install 'qcompile[hf]'") from error
    from qcompile.frontend.huggingface_weights import open_checkpoint

    return _configuration(folder), open_checkpoint(folder)


def _configuration(folder: Path) -> Any:
    from transformers import AutoConfig

    from qcompile.frontend.transformers_refusals import REFUSALS

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
    except REFUSALS as error:
        raise ModelError(str(file), f"it is no configuration of transformers ({error})", _WRITE) from error
