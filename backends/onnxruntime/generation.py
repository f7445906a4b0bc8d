"""A language model as a folder that onnxruntime-genai opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.backends import Lowered
from qcompile.backends.onnxruntime import lowering
from qcompile.backends.onnxruntime.attention import remove_head_transposes
from qcompile.backends.onnxruntime.cached_attention import attend_in_place
from qcompile.backends.onnxruntime.genai_config import FILE, Decoder, genai_config
from qcompile.backends.onnxruntime.integer_caches import hold_in_integers
from qcompile.backends.onnxruntime.last_positions import keep_last_positions
from qcompile.backends.onnxruntime.packed_heads import pack_heads
from qcompile.cache_rounding import without_rounding
from qcompile.contract import Finding
from qcompile.errors import UnsupportedError
from qcompile.generation import Generation

MODEL_FILE = "model.onnx"
"""What onnxruntime-genai opens; of the logits it has those of the last position."""

EVERY_POSITION_FILE = "every_position.onnx"
"""The same model with logits of all positions, to verify and evaluate it; it reads the same weights."""

DATA_FILE = "model.onnx.data"
_EXTERNAL_BYTES = 1024
_CACHED = ("Attention", "GroupQueryAttention")

_NO_DECODER = "Give a causal language model whose layers keep keys and values, as the Hugging Face door traces it"


def lower_generator(model: ir.Model, folder: Path, generation: Generation) -> Lowered:
    """Write a language model, twice over the same weights, and genai_config.json into an existing folder.

    Tokenizer files are not written. onnxruntime-genai takes no more threads than half of what the processor has, unless
    it is told; on 2 cores without hyperthreading that is half of its speed (SmolLM2 in 4 bits: first of 990 tokens
    after 1.75 s, not 0.94, then 111 tokens/s, not 155).

    Args:
        model: portable graph, quantized or not: inputs ids [batch, sequence], padding [batch, past + sequence], and a
            cache [batch, heads, past, size]; outputs logits and the cache with the new tokens.
        folder: where to.
        generation: what the graph does not say.

    Raises:
        UnsupportedError: the graph is none of a causal language model with its cache.
        ModelError: names of its cache do not count the layers.
    """
    prepared = model.clone()
    scales = without_rounding(prepared)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(prepared)
    remove_head_transposes(prepared)
    in_place, kept = attend_in_place(prepared, generation.context_length)
    common.RemoveUnusedNodesPass()(prepared)
    lowered, findings = lowering.lower(prepared)
    pack_heads(lowered)
    decoder = _decoder(lowered, in_place=in_place)
    ir.save(lowered, folder / EVERY_POSITION_FILE, external_data=DATA_FILE, size_threshold_bytes=_EXTERNAL_BYTES)
    held = scales if in_place else {}
    last = _write_last_positions(folder, held)
    _write_every_position(folder, held)
    (folder / FILE).write_text(json.dumps(genai_config(decoder, generation), indent=2) + "\n", encoding="utf-8")
    files = (MODEL_FILE, EVERY_POSITION_FILE, DATA_FILE, FILE)
    floats = Finding("cache", "kept", "it stays float32: only one that is written in place is held in 8 bits")
    return Lowered(EVERY_POSITION_FILE, files, (*kept, *((floats,) if scales and not held else ()), *findings, *last))


def _write_every_position(folder: Path, scales: Mapping[str, np.ndarray]) -> None:
    """Hold the cache in 8 bits inside of the graph: its inputs and outputs are those of the portable one, float32."""
    if scales:
        model = ir.load(folder / EVERY_POSITION_FILE)
        hold_in_integers(model, scales, floats_outside=True)
        ir.save(model, folder / EVERY_POSITION_FILE)


def _write_last_positions(folder: Path, scales: Mapping[str, np.ndarray]) -> tuple[Finding, ...]:
    model = ir.load(folder / EVERY_POSITION_FILE)
    logits, padding = _logits(model.graph), _padding(model.graph)
    for value in [each for each in model.graph.inputs if not each.uses()]:
        model.graph.inputs.remove(value)  # positions, which the rotary tables are read by in the operator itself
    done = keep_last_positions(model, logits, padding)
    hold_in_integers(model, scales, floats_outside=False)
    ir.save(model, folder / MODEL_FILE)
    return () if done else (Finding(str(logits.name), "kept", "logits of all positions are computed for each prompt"),)


def _decoder(model: ir.Model, *, in_place: bool) -> Decoder:
    nodes = [node for node in model.graph if node.op_type in _CACHED and _past(node)]
    if not nodes:
        raise _unsupported("no attention reads and writes a cache that is an input and an output")
    past = [_past(node) for node in nodes]
    first = past[0][0]
    logits = _logits(model.graph)
    assert first.shape is not None
    assert logits.shape is not None
    cache = {value for pair in past for value in pair}
    heads = nodes[0].attributes
    return Decoder(
        MODEL_FILE,
        tuple(str(value.name) for value in model.graph.inputs if value not in cache and value.uses()),
        tuple((str(keys.name), str(values.name)) for keys, values in past),
        tuple((str(node.outputs[1].name), str(node.outputs[2].name)) for node in nodes),
        first.shape,
        heads.get_int("num_heads", 0) or heads.get_int("q_num_heads", 0) or _heads(nodes[0]),
        str(logits.name),
        int(str(logits.shape[2])),
        in_place,
    )


def _heads(attention: ir.Node) -> int:
    """Number of query heads of an Attention whose inputs are [batch, heads, sequence, size]."""
    q = attention.inputs[0]
    assert q is not None
    assert q.shape is not None
    return int(str(q.shape[1]))


def _past(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return keys and values before this step, where they are inputs of the graph; both operators have them alike."""
    start = 3 if node.op_type == "GroupQueryAttention" else 4
    found = tuple(value for value in node.inputs[start : start + 2] if value is not None and value.is_graph_input())
    presents = len(node.outputs) > 2 and all(output.is_graph_output() for output in node.outputs[1:3])
    return found if len(found) == 2 and presents else ()


def _logits(part: ir.Graph) -> ir.Value:
    found = [value for value in part.outputs if value.shape is not None and len(value.shape) == 3]
    if len(found) != 1:
        raise _unsupported("not one of its outputs is logits [batch, sequence, vocabulary]")
    return found[0]


def _padding(part: ir.Graph) -> ir.Value:
    """Return the input int64 [batch, past + sequence], as long as the cache with the new tokens."""
    lengths = {value.shape[2] for value in part.outputs if value.shape is not None and len(value.shape) == 4}
    pairs = [each for each in part.inputs if each.dtype == ir.DataType.INT64 and each.shape is not None]
    for value in pairs:
        if value.shape is not None and len(value.shape) == 2 and value.shape[1] in lengths:
            return value
    raise _unsupported("no input says where there is padding, int64 [batch, past + sequence]")


def _unsupported(reason: str) -> UnsupportedError:
    return UnsupportedError("model", f"it cannot generate text: {reason}", _NO_DECODER)
