"""genai_config.json, by which onnxruntime-genai opens a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qcompile.errors import ModelError

FILE = "genai_config.json"

_TYPE = "decoder"
"""What onnxruntime-genai calls any model of this kind; other words change nothing for a decoder without images."""

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Where configurations of transformers say how many positions a model knows."""

_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
"""What a generation config of transformers and the search of onnxruntime-genai both know, by the same names."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a language model is to be used.

    Attributes:
        context_length: most tokens of a conversation.
        end: tokens that end an answer; the first also pads where there is no other.
        begin: token that begins a text, or None.
        pad: token that fills up shorter texts of a batch, or None.
        search: settings of onnxruntime-genai's search, by its names.
        threads: that one run uses; None: half of the processor's, which is what onnxruntime-genai does by itself.
    """

    context_length: int
    end: tuple[int, ...]
    begin: int | None = None
    pad: int | None = None
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threads: int | None = None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        context_length: int | None = None,
        threads: int | None = None,
    ) -> Generation:
        """Read what config.json and generation_config.json of transformers say; the second one counts where both do.

        Args:
            config: of the language model itself, not of one that contains it.
            generation_config: None: there is none.
            context_length: None: as the configuration says.
            threads: see the class.

        Raises:
            ModelError: nothing says how long the context is, or which token ends an answer.
        """
        said = {**config, **{name: value for name, value in (generation_config or {}).items() if value is not None}}
        context_length = context_length or next((said[name] for name in _CONTEXT if said.get(name)), None)
        if context_length is None:
            raise ModelError("config.json", "it does not say how many positions the model knows", "Give context_length")
        end = said.get("eos_token_id")
        end = tuple(end) if isinstance(end, Sequence) else (end,)
        if None in end or not end:
            raise ModelError("config.json", "it does not say which token ends an answer", "Add eos_token_id to it")
        search = {name: said[name] for name in _SEARCH if said.get(name) is not None}
        return cls(context_length, end, said.get("bos_token_id"), said.get("pad_token_id"), search, threads)


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
    if generation.threads is not None:
        options["intra_op_num_threads"] = generation.threads
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
