"""A tokenizer.json as metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from qcompile.errors import ModelError, UnsupportedError
from qcompile.frontend.gguf_tokenizer import BYTE_LEVEL, rule_of


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Add the tokens, merges, special tokens and chat template of a folder to a GGUF file.

    Does not apply to tokenizers that are no byte-pair encoding of bytes: GGUF wants the scores of the others, which a
    tokenizer.json does not have.

    Args:
        writer: of the file, which has no tokenizer yet.
        folder: with tokenizer.json, and tokenizer_config.json and chat_template.jinja where there are.
        vocabulary: number of tokens that the model knows; what the tokenizer has no word for is marked unused.

    Raises:
        ModelError: there is no tokenizer.json, or it has more tokens than the model.
        UnsupportedError: GGUF cannot say how the tokenizer splits text.
    """
    file = folder / "tokenizer.json"
    try:
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(str(file), f"cannot be read ({error})", "Save the model's tokenizer there") from error
    rule = rule_of(tokenizer)
    if tokenizer["model"]["type"] != "BPE" or (tokenizer.get("decoder") or {}).get("type") != "ByteLevel":
        reason = f"is no byte-pair encoding of bytes, but {tokenizer['model']['type']}"
        raise UnsupportedError(str(file), reason, "Write another output_format")
    if rule is None:
        reason = "splits text by a rule that has no name in GGUF that is known here"
        raise UnsupportedError(str(file), reason, "Write another output_format")
    tokens, types = _tokens(tokenizer, vocabulary, str(file))
    writer.add_tokenizer_model(BYTE_LEVEL)
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_space_prefix(False)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=len(tokens)).add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: dict[str, Any], vocabulary: int, subject: str) -> tuple[list[str], list[int]]:
    """Return the tokens in their order and the type of each."""
    by_number = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_number, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        by_number[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if max(by_number) >= vocabulary:
        reason = f"has the token {max(by_number)}, and the model knows {vocabulary}"
        raise ModelError(subject, reason, "Give the tokenizer of this model")
    tokens = [by_number.get(number, f"[PAD{number}]") for number in range(vocabulary)]
    return tokens, [kinds.get(number, gguf.TokenType.UNUSED) for number in range(vocabulary)]
