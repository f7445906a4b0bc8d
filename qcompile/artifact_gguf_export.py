"""Writes a language model as a GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from qcompile.disk_room import room_for_temporary_files
from qcompile.errors import ArtifactError, MissingDependencyError, UnsupportedError
from qcompile.frontend.assets import check_assets
from qcompile.frontend.gguf import is_gguf_file, open_gguf
from qcompile.frontend.huggingface import open_folder


@room_for_temporary_files()
def export_gguf(model: str | os.PathLike[str], output: str | os.PathLike[str], *, kind: str = "Q8_0") -> Path:
    """Write a decoder with its tokenizer as one GGUF file, as llama.cpp's convert_hf_to_gguf.py does; return its path.

    Weights start from those of the model, one at a time in memory, and are rounded to nearest; from another GGUF file,
    those that have the type already are copied bit for bit. Matrices that score or embed a vocabulary have 8 bits at
    least, those whose rows are no multiple of 32 are F16, vectors F32: see `write_gguf`.

    Does not apply to what a recipe made: an artifact has no float weights.

    Args:
        model: path of a Hugging Face folder with its tokenizer, or of a GGUF file.
        output: the file; what is there is replaced when the new one is complete.
        kind: type of the matrices: "F16", "Q8_0" or "Q4_0".

    Raises:
        UnsupportedError: the model is of another kind, or GGUF cannot say what it computes or how it splits text.
        ModelError: the model or its tokenizer cannot be read, or holds numbers that float16 does not.
        ArtifactError: the file cannot be written, or would replace the model.
        MissingDependencyError: the extra `gguf` is not installed.
    """
    try:
        from qcompile.artifact_gguf import KINDS, write_gguf
    except ImportError as error:
        reason = f"GGUF is written with the gguf package and transformers ({error})"
        raise MissingDependencyError(str(output), reason, "pip install 'qcompile[gguf]'") from error
    if kind not in KINDS:
        raise UnsupportedError(f"type {kind!r}", f"is none of {', '.join(KINDS)}", "Choose one of them")
    check_assets(model)
    path = Path(output)
    if path.is_dir():
        raise ArtifactError(str(path), "it is a folder", "Give the path of the .gguf file to write")
    if not is_gguf_file(model):
        source = Path(model)
        config, weights = open_folder(source)
        write_gguf(config, weights, source, path, kind)
        return path
    if path.exists() and path.samefile(model):
        raise ArtifactError(str(path), "it is the model itself", "Give another path")
    opened = open_gguf(model)
    parameters: Mapping[str, ir.TensorProtocol] = opened.weights()
    with tempfile.TemporaryDirectory() as folder:
        opened.save_tokenizer(Path(folder))
        write_gguf(opened.config, parameters, Path(folder), path, kind, as_it_is=opened.rows)
    return path
