"""The tokenizer of a language model as models of OpenVINO, which openvino_genai reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qcompile.backends.openvino.runtime import openvino
from qcompile.errors import MissingDependencyError, ModelError

TOKENIZER, DETOKENIZER = "openvino_tokenizer", "openvino_detokenizer"


def convert_tokenizer() -> Callable[..., Any]:
    """Return what converts a tokenizer of transformers; raises MissingDependencyError without it, or transformers."""
    try:
        import transformers  # noqa: F401  # openvino-tokenizers itself comes without it
        from openvino_tokenizers import convert_tokenizer as convert
    except ImportError as error:
        reason = f"folders for openvino_genai need openvino-tokenizers and transformers ({error})"
        mend = "pip install 'qcompile[genai]', or give output_format='model'"
        raise MissingDependencyError("openvino-tokenizers", reason, mend) from error
    found: Callable[..., Any] = convert
    return found


def write_tokenizers(folder: Path) -> tuple[str, ...]:
    """Convert the tokenizer that lies in a folder; return the names of the files that were written there.

    Raises:
        MissingDependencyError: openvino-tokenizers or transformers is not installed.
        ModelError: the tokenizer has a step that OpenVINO has no operator for.
    """
    convert = convert_tokenizer()
    from transformers import AutoTokenizer

    mend = "Use the backend 'onnxruntime', or output_format='model'"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        models = convert(tokenizer, with_detokenizer=True, skip_special_tokens=True)
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError("tokenizer.json", f"OpenVINO has no form of it: {error}", mend) from error
    for model, name in zip(models, (TOKENIZER, DETOKENIZER), strict=True):
        openvino().save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return tuple(f"{name}.{part}" for name in (TOKENIZER, DETOKENIZER) for part in ("xml", "bin"))
