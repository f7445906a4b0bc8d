"""genai_config.json, by which onnxruntime-genai opens a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from qcompile.errors import ModelError
from qcompile.generation import Generation

FILE = "genai_config.json"

_TYPE = "decoder"
"""What onnxruntime-genai calls any model of this kind; other words change nothing for a decoder without images."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What onnxruntime-genai must know of the graph.

    Attributes:
        file: name of the model file.
        inputs: names of the inputs beside the cache.
        past: names of keys and values that are inputs, by layer.
        present: names of those that are outputs.
        cache_shape: [batch, key heads, past, size of a head] of each.
        query_heads: of each layer.
        logits: name of the output.
        vocabulary: number of tokens.
        in_place: whether keys and values are written behind the old ones.
    """

    file: str
    inputs: tuple[str, ...]
    past: tuple[tuple[str, str], ...]
    present: tuple[tuple[str, str], ...]
    cache_shape: ir.Shape
    query_heads: int
    logits: str
    vocabulary: int
    in_place: bool


def genai_config(decoder: Decoder, generation: Generation) -> dict[str, Any]:
    """Return the content of genai_config.json.

    Raises:
        ModelError: names of the cache do not count the layers.
    """
    keys, values = (_pattern(pair[index] for pair in decoder.past) for index in (0, 1))
    new_keys, new_values = (_pattern(pair[index] for pair in decoder.present) for index in (0, 1))
    options: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    tokens = {"bos_token_id": generation.begin, "eos_token_id": list(generation.end)}
    pad = generation.end[0] if generation.pad is None else generation.pad
    return {
        "model": {
            "type": _TYPE,
            **{name: token for name, token in tokens.items() if token is not None},
            "pad_token_id": pad,
            "context_length": generation.context_length,
            "vocab_size": decoder.vocabulary,
            "decoder": {
                "filename": decoder.file,
                "session_options": options,
                "head_size": decoder.cache_shape[3],
                "hidden_size": decoder.query_heads * int(str(decoder.cache_shape[3])),
                "num_attention_heads": decoder.query_heads,
                "num_key_value_heads": decoder.cache_shape[1],
                "num_hidden_layers": len(decoder.past),
                "inputs": {
                    **{name: name for name in decoder.inputs},
                    "past_key_names": keys,
                    "past_value_names": values,
                },
                "outputs": {
                    "logits": decoder.logits,
                    "present_key_names": new_keys,
                    "present_value_names": new_values,
                },
            },
        },
        "search": {
            **generation.search,
            "max_length": generation.context_length,
            "past_present_share_buffer": decoder.in_place,
        },
    }


def _pattern(names: Iterable[str]) -> str:
    """Return the names with %d in the place of the number of the layer."""
    every = list(names)
    pattern = re.sub(r"\d+", "%d", every[0], count=1)
    if [pattern.replace("%d", str(index)) for index in range(len(every))] != every:
        mend = "Name them as in past_key_values.0.key, past_key_values.1.key"
        raise ModelError(f"input or output {every[0]}", "names of the cache do not count the layers", mend)
    return pattern
