"""The GGUF door: a decoder's configuration, its weights and its tokenizer, from one file.

The `gguf` package and transformers (extra `gguf`) are imported when a file is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qcompile.errors import MissingDependencyError, ModelError
from qcompile.plain_files import check_plain

if TYPE_CHECKING:
    from qcompile.frontend.gguf_model import GGUFModel

SUFFIX = ".gguf"


def is_gguf_file(model: Any) -> bool:
    """Whether the object is a path that ends like a GGUF file."""
    return isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() == SUFFIX


def open_gguf(path: str | os.PathLike[str]) -> GGUFModel:
    """Open a decoder in a GGUF file; no weight is read.

    Raises:
        ModelError: the file is missing, broken, or not of a decoder that transformers knows.
        UnsafeModelError: it states more entries than any model has.
        UnsupportedError: it holds numbers of a type that the gguf package does not dequantize.
        MissingDependencyError: the extra `gguf` is not installed.
    """
    import numpy as np

    file, subject = Path(path), str(path)
    try:
        from qcompile.frontend.gguf_config import architecture_of, configuration
        from qcompile.frontend.gguf_header import read_header
        from qcompile.frontend.gguf_model import GGUFModel, sources_of
        from qcompile.frontend.gguf_names import Names
    except ImportError as error:
        reason = f"is read with the gguf package and transformers ({error})"
        raise MissingDependencyError(subject, reason, "pip install 'qcompile[gguf]'") from error
    try:
        check_plain(file)
        data = np.memmap(file, np.uint8, "r")
    except (OSError, ValueError) as error:  # numpy maps no empty file
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ModelError(subject, reason, "Pass the path of a .gguf file") from error
    header = read_header(data, subject)
    architecture = architecture_of(header, subject)
    config = configuration(header, architecture, subject)
    names = Names.of(config, architecture, subject)
    return GGUFModel(file, config, header, names, sources_of(header, names, data, subject), data)


def read_gguf(path: str | os.PathLike[str]) -> ir.Model:
    """Read the decoder of a GGUF file: `huggingface_export.export_decoder` on its dequantized weights.

    Raises as `open_gguf`.
    """
    opened = open_gguf(path)
    from qcompile.frontend.huggingface_export import export_decoder

    # Not before: what is not installed is said by `open_gguf`.
    return export_decoder(opened.config, opened.weights())
