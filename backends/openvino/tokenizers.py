"""The tokenizer of a language model as models of OpenVINO, which openvino_genai reads."""

from __future__ import annotations

from pathlib import Path

from qcompile.backends.openvino.runtime import openvino
from qcompile.errors import MissingDependencyError, ModelError

TOKENIZER, DETOKENIZER = "openvino_tokenizer", "openvino_detokenizer"


def write_tokenizers(folder: Path) -> tuple[str, ...]:
    """Convert the tokenizer that lies in a folder; return the names of the files that were written there.

    Raises:
        MissingDependencyError: openvino-tokenizers or transformers is not installed.
        ModelError: the tokenizer has a step that OpenVINO has no operator for.
    """
    try:
        from openvino_tokenizers import convert_tokenizer
        from transformers import AutoTokenizer
    except ImportError as error:
        reason = f"folders for openvino_genai need openvino-tokenizers and transformers ({error})"
        raise MissingDependencyError("openvino-tokenizers", reason, "pip install 'qcompile[genai]'") from error
    mend = "Use the backend 'onnxruntime', or output_format='model'"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        models = convert_tokenizer(tokenizer, with_detokenizer=True, skip_special_tokens=True)
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError("tokenizer.json", f"OpenVINO has no form of it: {error}", mend) from error
    for model, name in zip(models, (TOKENIZER, DETOKENIZER), strict=True):
        openvino().save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return tuple(f"{name}.{part}" for name in (TOKENIZER, DETOKENIZER) for part in ("xml", "bin"))
