"""The tokenizer in the metadata of a GGUF file, as the files that every runtime's tokenizer reads."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from qcompile.errors import ModelError, UnsupportedError, first_line
from qcompile.frontend.gguf_header import Header
from qcompile.frontend.gguf_names import REFUSALS

_PRE = "tokenizer.ggml.pre"
_BYTE_LEVEL = "gpt2"
"""What GGUF calls byte-pair encoding of bytes, whoever's it is; only these are split by a rule that `_PRE` names."""

_SPLITS_OF_GPT2 = frozenset({"gpt-2", "phi-2", "roberta-bpe", "jina-es", "jina-de", "jina-v2-code", "mpt", "olmo"})
_DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Rules of llama.cpp's llama-vocab.cpp that split each digit off before they split as GPT-2; transformers does not."""

_DIGITS_SPLITS = (r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
"""As two regular expressions, which onnxruntime-genai follows; it passes over the step `Digits` of `tokenizers`."""

_OF_THE_LOADING = ("is_local", "local_files_only", "backend", "name_or_path")


def save_tokenizer(path: Path, header: Header, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, where the file has one, chat_template.jinja.

    Args:
        path: a GGUF file.
        header: of it.
        folder: exists.

    Raises:
        ModelError: the file has no tokenizer, or one that transformers cannot rebuild.
        UnsupportedError: text is split by a rule that neither transformers nor qcompile knows.
    """
    subject = str(path)
    rule = _rule(header, subject)
    try:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
    except REFUSALS as error:
        reason = f"transformers cannot rebuild its tokenizer ({first_line(error)})"
        raise ModelError(
            subject, reason, "Take the tokenizer of the folder that the file was converted from"
        ) from error
    if rule in _DIGITS_FIRST:
        splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in _DIGITS_SPLITS]
        whole = [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(whole)
    tokenizer.save_pretrained(folder)
    _clean(folder / "tokenizer_config.json", header)


def _rule(header: Header, subject: str) -> str | None:
    """Return the name of the rule that splits text before it is encoded, where there is one."""
    kind, rule = (header.metadata.get(name) for name in ("tokenizer.ggml.model", _PRE))
    if kind is None:
        raise ModelError(subject, "has no tokenizer", "Take that of the folder that the file was converted from")
    if kind.value != _BYTE_LEVEL:
        return None
    known = _SPLITS_OF_GPT2 | _DIGITS_FIRST | gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS.keys()
    if rule is None or rule.value not in known:
        reason = f"splits text by the rule {None if rule is None else rule.value!r}, which is not known here"
        raise UnsupportedError(subject, reason, "Take the tokenizer of the folder that the file was converted from")
    return str(rule.value)


def _clean(file: Path, header: Header) -> None:
    """Leave out what was of the loading, and name the class as runtimes without transformers 5 know it."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name in _OF_THE_LOADING:
        settings.pop(name, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["clean_up_tokenization_spaces"] = False
    longest = header.metadata.get(f"{header.metadata['general.architecture'].value}.context_length")
    if longest is not None:
        settings["model_max_length"] = longest.value
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
