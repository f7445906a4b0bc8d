"""The tokenizer in the metadata of a GGUF file, as the files that every runtime's tokenizer reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from qcompile.errors import ModelError, UnsupportedError, first_line
from qcompile.frontend.gguf_header import Header
from qcompile.frontend.transformers_refusals import REFUSALS
from qcompile.generation import MODEL_ALONE

_TYPES = gguf_tokenizer_mapping.GGUF_TOKENIZER_TYPES
BYTE_LEVEL = next(name for name, build in _TYPES.items() if build is gguf_tokenizer_mapping.byte_level_tokenizer)
"""What GGUF calls byte-pair encoding of bytes, whoever's it is; only these are split by a rule that the file names."""

_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Rules of llama.cpp (llama-vocab.cpp) that cut each digit off, and split as `_PLAIN` then; transformers does not."""

_PLAIN = ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-code", "olmo")

_DIGITS_SPLITS = (
    r"\p{N}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?=[0-9])|\s+(?!\S)|\s+",
)
"""The same as two regular expressions, in the one form that both runtimes' tokenizers follow: onnxruntime-genai passes
over the step `Digits` of `tokenizers`, and openvino_tokenizers looks beyond what the first expression cut off."""

_OTHERWISE = "Take the tokenizer of the folder that the file was converted from"

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
        raise ModelError(subject, reason, _OTHERWISE) from error
    if rule in _DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = _splitting(*_DIGITS_SPLITS)
    tokenizer.save_pretrained(folder)
    count = header.metadata["tokenizer.ggml.tokens"].count
    made_up = {token for token, number in tokenizer.get_vocab().items() if number >= count}
    if made_up:
        _change(folder / "tokenizer.json", lambda whole: _without_tokens(whole, made_up))
    _change(folder / "tokenizer_config.json", lambda settings: _without_loading(settings, header, made_up))


def check_tokenizer(path: Path, header: Header) -> None:
    """Raise what `save_tokenizer` does where the metadata tell that it cannot; whether transformers can, it tells."""
    _rule(header, str(path), _OTHERWISE + MODEL_ALONE)


def rule_of(tokenizer: Mapping[str, Any]) -> str | None:
    """Return the name that GGUF has for how a tokenizer.json splits text; None where it has none that is known here."""
    found = tokenizer.get("pre_tokenizer")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    known: dict[str, list[Any]] = {_DIGITS_FIRST[0]: [_splitting(*_DIGITS_SPLITS), digits], _PLAIN[0]: [by_bytes]}
    for name, split in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS.items():
        known[name] = [_splitting(split)]
    return next((name for name, forms in known.items() for form in forms if _same(found, form)), None)


def _splitting(*expressions: str) -> pre_tokenizers.Sequence:
    splits = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _same(found: Any, form: Any) -> bool:
    """Whether a part of a tokenizer.json is this step; offsets in the text are not what it is about."""
    return bool(_without_offsets(found) == _without_offsets(json.loads(form.__getstate__())))


def _without_offsets(step: Any) -> Any:
    if isinstance(step, dict):
        return {name: _without_offsets(value) for name, value in step.items() if name != "trim_offsets"}
    return [_without_offsets(each) for each in step] if isinstance(step, list) else step


def _rule(header: Header, subject: str, mend: str = _OTHERWISE) -> str | None:
    """Return the name of the rule that splits text before it is encoded, where there is one."""
    kind, rule = (header.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind is None or "tokenizer.ggml.tokens" not in header.metadata:
        raise ModelError(subject, "has no tokenizer", mend)
    if kind.value != BYTE_LEVEL:
        return None
    known = (*_DIGITS_FIRST, *_PLAIN, *gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS)
    if rule is None or rule.value not in known:
        reason = f"splits text by the rule {None if rule is None else rule.value!r}, which is not known here"
        raise UnsupportedError(subject, reason, mend)
    return str(rule.value)


def _change(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    changed = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_tokens(tokenizer: dict[str, Any], made_up: set[str]) -> dict[str, Any]:
    """Drop the tokens that a class of transformers adds where a file has none for a purpose: no model knows them."""
    kept = [added for added in tokenizer["added_tokens"] if added["content"] not in made_up]
    return tokenizer | {"added_tokens": kept}


def _without_loading(settings: dict[str, Any], header: Header, made_up: set[str]) -> dict[str, Any]:
    """Leave out what was of the loading, and name the class as runtimes without transformers 5 know it."""
    kept = {
        name: value
        for name, value in settings.items()
        if name not in _OF_THE_LOADING and value is not None and not (isinstance(value, str) and value in made_up)
    }
    longest = header.metadata.get(f"{header.metadata['general.architecture'].value}.context_length")
    if longest is not None:
        kept["model_max_length"] = longest.value
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
