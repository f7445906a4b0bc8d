"""Attention over a cache that is written in place: com.microsoft.GroupQueryAttention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime.linears import CONTRIB
from qcompile.backends.onnxruntime.rotary_tables import RotaryTable, rotary_table
from qcompile.backends.onnxruntime.small_graphs import SmallGraph, small_graph
from qcompile.contract import Finding
from qcompile.initializers import register_initializer

_MASK, _PAST_KEY, _PAST_VALUE = 3, 4, 5
_BATCH, _SEQUENCE, _PAST = 2, 5, 7
"""Sizes that a mask is tried with: all different."""

_ANGLES = 8
"""GroupQueryAttention rotates features whose angles are a multiple of this."""


@dataclasses.dataclass(frozen=True)
class _Cached:
    """An Attention [batch, sequence, features] over a cache of the graph, as GroupQueryAttention does it.

    Attributes:
        node: the Attention.
        sources: query, key and value before rotation.
        padding: input of the graph, int64 [batch, past + sequence]: 1 where there is a token.
        table: angles of query and key; None where they come rotated, or are not.
        interleaved: which features the rotation pairs, as RotaryEmbedding has it.
    """

    node: ir.Node
    sources: tuple[ir.Value, ir.Value, ir.Value]
    padding: ir.Value
    table: RotaryTable | None
    interleaved: int


def attend_in_place(model: ir.Model, context_length: int) -> tuple[bool, tuple[Finding, ...]]:
    """Attention(RotaryEmbedding(q), RotaryEmbedding(k), v, mask, past)  ->  GroupQueryAttention(q, k, v, past, sizes).

    The operator writes keys and values behind those that are there, where input and output are one buffer, and makes
    the rotation and the mask itself. For one token over 1,000 with 9 query and 3 key heads of 64 it takes 95 us;
    Attention, which returns a longer copy, 112 (2 threads, Zen 5, onnxruntime 1.31). Applies to all attentions of a
    model over inputs and outputs of the graph or to none, since they share buffers or do not: where each has heads of
    one size and a mask that is causal and leaves out what an input says is padding (found by running the mask). A
    rotation whose angles do not depend on the position alone stays outside. From then on padding is on the right,
    positions are counted from the mask, and several tokens behind a cache are for a batch of 1.

    Args:
        model: after `remove_head_transposes`.
        context_length: positions to tabulate angles for.

    Returns:
        Whether the attentions were replaced, and why not.
    """
    nodes = [node for node in model.graph if _has_cache(node)]
    masks: dict[ir.Value, ir.Value | str] = {}
    tables: dict[tuple[ir.Value | None, ...], RotaryTable | None] = {}
    found = [_match(node, context_length, masks, tables) for node in nodes]
    reasons = {each for each in found if isinstance(each, str)}
    if reasons or not nodes:
        subject = graph.layer_name(nodes[0]) if nodes else "attention"
        said = "; ".join(sorted(reasons)) or "no attention reads and writes a cache that is an input and an output"
        return False, (Finding(subject, "kept", f"the cache is not written in place: {said}"),)
    matches = [each for each in found if isinstance(each, _Cached)]
    lengths = _lengths(model, matches)
    caches: dict[int, tuple[ir.Value, ir.Value]] = {}
    for each in matches:
        _write(model, each, lengths[each.padding], _registered(model, each.table, caches))
    model.graph.opset_imports.setdefault(CONTRIB, 1)
    return True, ()


def _has_cache(node: ir.Node) -> bool:
    past = node.inputs[_PAST_KEY:] if graph.is_standard(node, "Attention") else ()
    return len(past) > 1 and all(value is not None and value.is_graph_input() for value in past[:2])


def _match(
    node: ir.Node,
    context_length: int,
    masks: dict[ir.Value, ir.Value | str],
    tables: dict[tuple[ir.Value | None, ...], RotaryTable | None],
) -> _Cached | str:
    """Return the attention, or why it is none."""
    q, k, v, mask, past_key, past_value = node.inputs[:6]
    if any(each is None for each in node.inputs[:6]) or len(node.inputs) > 6:
        return "it has no mask, or inputs of a later opset"
    assert q is not None
    assert k is not None
    assert v is not None
    assert mask is not None
    if node.attributes.get_int("q_num_heads", 0) == 0:
        return "its heads are not read from one value"
    if len(node.outputs) != 3 or not all(output.is_graph_output() for output in node.outputs[1:]):
        return "its keys and values are no outputs of the graph"
    if past_key is None or past_value is None or _size(past_key) is None or _size(past_key) != _size(past_value):
        return "heads of keys and of values are not of one size"
    if node.attributes.get_int("is_causal", 0) or node.attributes.get_int("qk_matmul_output_mode", 0):
        return "it masks by itself, or returns products"
    if mask not in masks:
        masks[mask] = _padding(mask, q, past_key, context_length)
    padding = masks[mask]
    if isinstance(padding, str):
        return padding
    table = _table(q.producer(), k.producer(), context_length, tables)
    if table is None:
        return _Cached(node, (q, k, v), padding, None, 0)
    sources = [rotary.inputs[0] for rotary in (q.producer(), k.producer()) if rotary is not None]
    before_q, before_k = (each for each in sources if each is not None)
    return _Cached(node, (before_q, before_k, v), padding, table, _interleaved(q.producer()))


def _table(
    first: ir.Node | None,
    second: ir.Node | None,
    context_length: int,
    tables: dict[tuple[ir.Value | None, ...], RotaryTable | None],
) -> RotaryTable | None:
    """Return the angles where queries and keys are rotated alike and the operator can do it; None: it stays outside."""
    rotated = graph.is_standard(first, "RotaryEmbedding") and graph.is_standard(second, "RotaryEmbedding")
    if first is None or second is None or not rotated:
        return None
    if first.inputs[1:] != second.inputs[1:] or _interleaved(first) != _interleaved(second):
        return None
    angles = tuple(first.inputs[1:])
    if angles not in tables:
        tables[angles] = rotary_table(first, context_length)
    table = tables[angles]
    return table if table is not None and table.cos.shape[1] % _ANGLES == 0 else None


def _size(past: ir.Value) -> int | None:
    size = past.shape[3] if past.shape is not None and len(past.shape) == 4 else None
    return size if isinstance(size, int) else None


def _interleaved(rotary: ir.Node | None) -> int:
    return 0 if rotary is None else rotary.attributes.get_int("interleaved", 0)


def _padding(mask: ir.Value, q: ir.Value, past_key: ir.Value, context_length: int) -> ir.Value | str:
    """Return the input that tells padding where the mask is causal and leaves out no more than that, or why not."""
    part = small_graph(mask)
    if part is None or len(part.numbers) != 1 or q.shape is None or past_key.shape is None:
        return "its mask is not made of sizes and one input"
    (padding,) = part.numbers
    if padding.shape is None or len(padding.shape) != 2 or padding.dtype != ir.DataType.INT64:
        return "its mask is not made of int64 [batch, keys]"
    for past in (0, _PAST, max(context_length - _SEQUENCE, 0)):
        if not _is_causal(part, padding, (q.shape, past_key.shape), past):
            return "its mask is not causal with padding alone"
    return padding


def _is_causal(part: SmallGraph, padding: ir.Value, shapes: tuple[ir.Shape, ir.Shape], past: int) -> bool:
    q, cache = shapes
    assert padding.shape is not None
    sizes = {str(q[0]): _BATCH, str(q[1]): _SEQUENCE, str(cache[0]): _BATCH, str(cache[2]): past}
    sizes[str(padding.shape[1])] = past + _SEQUENCE
    tokens = np.ones((_BATCH, past + _SEQUENCE), np.int64)
    tokens[1, -2:] = 0
    mask = part.compute({padding: tokens}, sizes)
    causal = np.arange(past + _SEQUENCE) <= np.arange(past, past + _SEQUENCE)[:, None]
    wanted = causal & (tokens[:, None, None, :] != 0)
    return mask is not None and mask.dtype == bool and mask.shape == wanted.shape and bool(np.all(mask == wanted))


def _lengths(model: ir.Model, matches: Sequence[_Cached]) -> dict[ir.Value, tuple[ir.Value, ir.Value]]:
    """Write, for each input that tells padding: number of keys less one, int32 [batch], and of all, int32 scalar."""
    lengths = {}
    names = graph.Names(model.graph)
    for padding in dict.fromkeys(each.padding for each in matches):
        tape = ir.tape.Tape()
        one = _constant(model, names.new("qcompile.one"), np.array([1], np.int64))
        tokens = tape.op("ReduceSum", [padding, one], {"keepdims": 0})
        last = tape.op("Cast", [tape.op("Sub", [tokens, one])], {"to": ir.DataType.INT32})
        size = tape.op("Squeeze", [tape.op("Shape", [padding], {"start": 1, "end": 2})])
        total = tape.op("Cast", [size], {"to": ir.DataType.INT32})
        for node in tape.nodes:
            node.name = node.outputs[0].name = names.new(f"{padding.name}.{node.op_type.lower()}")
        first = next(iter(model.graph))
        model.graph.insert_before(first, tape.nodes)
        lengths[padding] = last, total
    return lengths


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    return register_initializer(model.graph, ir.tensor(array, name=name))


def _registered(
    model: ir.Model, table: RotaryTable | None, caches: dict[int, tuple[ir.Value, ir.Value]]
) -> tuple[ir.Value | None, ir.Value | None]:
    if table is None:
        return None, None
    if id(table) not in caches:
        names = graph.Names(model.graph)
        cos, sin = (_constant(model, names.new(f"rotary.{name}"), getattr(table, name)) for name in ("cos", "sin"))
        caches[id(table)] = cos, sin
    return caches[id(table)]


def _write(
    model: ir.Model,
    match: _Cached,
    lengths: tuple[ir.Value, ir.Value],
    table: tuple[ir.Value | None, ir.Value | None],
) -> None:
    node = match.node
    q, k, v = _packed(match.sources) or match.sources
    attributes: dict[str, int | float] = {
        "num_heads": node.attributes.get_int("q_num_heads", 0),
        "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
        "scale": node.attributes.get_float("scale", 0.0),
        "softcap": node.attributes.get_float("softcap", 0.0),
        "do_rotary": int(table[0] is not None),
        "rotary_interleaved": match.interleaved,
    }
    values = [q, k, v, *node.inputs[_PAST_KEY : _PAST_VALUE + 1], *lengths, *table]
    fused = ir.node("GroupQueryAttention", values, attributes, domain=CONTRIB, name=node.name, num_outputs=3)
    fused.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [fused], node.outputs, fused.outputs)


def _packed(sources: tuple[ir.Value, ir.Value, ir.Value]) -> tuple[ir.Value | None, None, None] | None:
    """Return the value of which query, key and value are the parts, in this order."""
    split = sources[0].producer()
    if not graph.is_standard(split, "Split") or split is None or tuple(split.outputs) != sources:
        return None
    return (split.inputs[0], None, None) if split.attributes.get_int("axis", 0) in (2, -1) else None
