"""A folder of Hugging Face with a tiny random language model and a tokenizer of single characters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qcompile.models.random_decoders import random_decoder

_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_language_model(folder: Path, architecture: str = "llama") -> Path:
    """Write a random decoder of 256 tokens, with a byte-level tokenizer and a template of conversations."""
    model = random_decoder(architecture)[0].model
    model.save_pretrained(folder)
    # No token is a part of a letter: a random model would make texts of broken ones, which runtimes show as they like.
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter.isascii() or letter in "ĠĊ"]
    pairs = (first + second for first in letters for second in letters)
    tokens = itertools.islice(itertools.chain(["<pad>", "<s>", "</s>"], letters, pairs), 256)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512}))
    return folder
