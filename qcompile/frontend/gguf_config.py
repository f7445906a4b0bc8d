"""The configuration in the metadata of a GGUF file, as transformers' configuration object."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from qcompile.errors import ModelError, UnsupportedError, first_line
from qcompile.frontend.gguf_header import Header
from qcompile.frontend.transformers_refusals import REFUSALS

_OWN = frozenset({"general.architecture", "general.alignment"})
"""Metadata that the writer writes itself."""

_HEAD_SIZES = ("attention.key_length", "attention.value_length")
_BETTER_STATED = {"head_dim": _HEAD_SIZES[0], "vocab_size": "vocab_size"}
"""What transformers takes from the rotary width, or from the tokenizer, or leaves as its default."""

_COMPUTED_WITH = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_scale",
    "logit_scale": "logit_scale",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Metadata that change the numbers without changing a shape, and what transformers calls them: its table has most of
them for no architecture, and computes as if they were not there."""

_NEUTRAL = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "logit_scale": 1.0}
"""What says no more than leaving it out."""


def architecture_of(header: Header, subject: str) -> str:
    """Return what the file calls its architecture, and check what the size of a model in memory hangs on."""
    field = header.metadata.get("general.architecture")
    if field is None or not isinstance(field.value, str):
        raise ModelError(subject, "does not say its architecture", "Convert the model again")
    layers = header.metadata.get(f"{field.value}.block_count")
    if layers is None or not isinstance(layers.value, int) or not 0 < layers.value <= len(header.tensors):
        stated = "no number" if layers is None else repr(layers.value)
        reason = f"states {stated} of layers, and has {len(header.tensors)} tensors"
        raise ModelError(subject, reason, "Convert the model again")
    return field.value


def configuration(header: Header, architecture: str, subject: str) -> Any:
    """Return transformers' configuration, which it makes from metadata without the vocabulary.

    Its reader of this file would take seconds for the vocabulary, and trusts what it reads; so it gets a small one with
    the same metadata and the names of the tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder) / "head.gguf", architecture)
        for name, field in header.metadata.items():
            if field.value is not None and field.value != [] and name not in _OWN:
                writer.add_key_value(name, field.value, field.kind, field.element)
        tokens = header.metadata.get("tokenizer.ggml.tokens")
        if tokens is not None and f"{architecture}.vocab_size" not in header.metadata:
            writer.add_vocab_size(tokens.count)
        for name in header.tensors:
            writer.add_tensor(name, np.zeros(1, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            config = transformers.AutoConfig.from_pretrained(folder, gguf_file="head.gguf", local_files_only=True)
        except REFUSALS as error:
            reason = f"transformers cannot make a configuration of its metadata ({first_line(error)})"
            raise ModelError(subject, reason, "See which architectures transformers reads from GGUF") from error
    config.name_or_path = ""  # it was made in a folder that is gone
    stated = config.to_dict()
    for name, key in _BETTER_STATED.items():
        better = header.metadata.get(f"{architecture}.{key}")
        if better is not None and name in stated:
            try:
                setattr(config, name, better.value)
            except REFUSALS as error:
                reason = f"transformers does not take {better.value!r} for {name}"
                raise ModelError(subject, reason, "Convert the model again") from error
    _check_computation(header, architecture, config, subject)
    return config


def _check_computation(header: Header, architecture: str, config: Any, subject: str) -> None:
    """Raise ModelError for an entry that changes what is computed, and that transformers' reader passes over."""
    for key, name in _COMPUTED_WITH.items():
        field = header.metadata.get(f"{architecture}.{key}")
        rotary = getattr(config, "rope_parameters", None) or {}
        known = rotary.get(name, getattr(config, name, None))
        if field is not None and field.value != _NEUTRAL.get(key) and not _says(known, field.value):
            reason = f"states {architecture}.{key} = {field.value!r}, which transformers leaves out: it would compute "
            mend = "Start from the folder of the model that it was converted from"
            raise ModelError(subject, f"{reason}something else", mend)


def _says(known: Any, stated: Any) -> bool:
    """Whether a configuration has what the file states, which has numbers in float32."""
    if isinstance(stated, float) and isinstance(known, (int, float)):
        return bool(np.isclose(known, stated, rtol=1e-6, atol=0))
    return bool(known == stated)


def metadata_of(config: Any) -> tuple[str, dict[str, bool | int | float]]:
    """Return what GGUF calls the architecture of a configuration, and its numbers under GGUF's names.

    The other way of `configuration`, by the same table of transformers. What GGUF has no word for is left out.

    Raises:
        UnsupportedError: there is no name for the architecture that transformers reads back.
    """
    architecture = config.model_type
    known = sorted(GGUF_CONFIG_MAPPING.keys() & set(gguf.MODEL_ARCH_NAMES.values()))
    if architecture not in known:
        reason = f"cannot be written as GGUF, which has names for {', '.join(known)}"
        raise UnsupportedError(f"architecture {architecture}", reason, "Write another output_format")
    found: dict[str, bool | int | float] = {f"{architecture}.vocab_size": config.vocab_size}
    table: Any = GGUF_CONFIG_MAPPING[architecture]
    for key, name in table.items():
        rotary = getattr(config, "rope_parameters", None) or {}
        value = None if name is None else rotary.get(name, getattr(config, name, None))
        if isinstance(value, (bool, int, float)):
            found[f"{architecture}.{key}"] = value
    head_size = getattr(config, "head_dim", None)
    if isinstance(head_size, int):
        found |= {f"{architecture}.{key}": head_size for key in _HEAD_SIZES}
    return architecture, found
