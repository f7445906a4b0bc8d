"""A folder of a small decoder with random weights and a tokenizer, as Hugging Face has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qcompile.models.installed import import_optional
from qcompile.models.random_decoders import random_decoder
from qcompile.models.texts import calibration_texts

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
"""In the order of their numbers, which are those that `random_decoder` gives its models."""


def write_decoder_folder(folder: str | Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """Write config.json, safetensors, tokenizer.json and tokenizer_config.json; returns the folder.

    The tokenizer is a byte-pair encoding of bytes, trained on English text that is on every machine. It adds nothing to
    a text, and leaves out what is not ASCII: no token is a part of a letter, of which random weights make broken ones.
    There is no template of conversations.

    Args:
        folder: need not be there yet.
        architecture: as in `random_decoder`.
        seed: of the weights.

    Raises:
        MissingDependencyError: when transformers is not installed.
    """
    folder = Path(folder)
    model: Any = random_decoder(architecture, seed=seed)[0].model
    tokenizers = import_optional("tokenizers", "'qcompile[hf]'")
    model.save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    letters = [letter for letter in tokenizers.pre_tokenizers.ByteLevel.alphabet() if letter.isascii()]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=model.config.vocab_size,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=letters,
        show_progress=False,
    )
    text = "\n\n".join(calibration_texts(20)).encode("ascii", errors="ignore").decode()
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {**_SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder
