"""Caches of RotaryEmbedding: one cos and sin for the whole batch, or a row for each sample."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.graph import Names, all_nodes, dims_are_known, is_standard
from qcompile.initializers import register_initializer


def expand_caches(model: ir.Model) -> list[ir.Node]:
    """RotaryEmbedding(x, cos, sin) with caches of batch 1  ->  the caches expanded to the batch of x; return the nodes.

    Without position ids the operator takes caches [batch, sequence, half]. torch's exporter makes them [1, sequence,
    half], which ONNX broadcasts and ONNX Runtime refuses. Does not apply to caches that are read through position
    ids, nor where the batch of x is known to be 1 or that of the caches; one of unknown batch is expanded, which does
    nothing where the batches are equal. Nodes of one graph and batch share the result.
    """
    found = [(node, index) for node in all_nodes(model) for index in _to_expand(node)]
    if not found:
        return []
    names = Names(model.graph)
    tail = register_initializer(model.graph, ir.tensor(np.ones(2, np.int64), name=names.new("qcompile.rotary_ones")))
    expanded: dict[tuple[ir.Value, object, object], ir.Value] = {}
    for node, index in found:
        cache, x = node.inputs[index], node.inputs[0]
        assert cache is not None
        assert x is not None
        batch = _batch(x)
        # What a branch of an If makes is not seen outside of it, nor in the other branch.
        key = (cache, batch if _is_known(batch) else x, node.graph)
        if key not in expanded:
            expanded[key] = _expand(node, cache, x, tail, names)
        node.replace_input_with(index, expanded[key])
    return list(dict.fromkeys(node for node, _ in found))


def _to_expand(node: ir.Node) -> list[int]:
    """Indices of the caches, 1 and 2, that may have another batch than x."""
    if not is_standard(node, "RotaryEmbedding") or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return []
    x = node.inputs[0]
    if x is None or _batch(x) == 1:
        return []
    return [index for index in (1, 2) if _may_differ(node.inputs[index], x)]


def _may_differ(cache: ir.Value | None, x: ir.Value) -> bool:
    if cache is None or _is_expanded(cache, x):
        return False
    return not _is_known(_batch(x)) or _batch(cache) != _batch(x)


def _expand(before: ir.Node, cache: ir.Value, x: ir.Value, tail: ir.Value, names: Names) -> ir.Value:
    """Insert Expand(cache, [batch of x, 1, 1]) in front of the node."""
    tape = ir.tape.Tape()
    batch = tape.op("Shape", [_upstream(x)], {"start": 0, "end": 1})
    shape = tape.op("Concat", [batch, tail], {"axis": 0})
    result = tape.op("Expand", [cache, shape])
    if cache.shape is not None:
        result.shape = ir.Shape([_batch(x), *cache.shape[1:]])
    result.type = cache.type
    for value, suffix in ((batch, "batch"), (shape, "batch_shape"), (result, "batched")):
        value.name = names.new(f"{cache.name}_{suffix}")
    for node in tape.nodes:
        node.name = names.new(f"{node.outputs[0].name}_node")
    assert before.graph is not None
    before.graph.insert_before(before, tape.nodes)
    return result


def _upstream(x: ir.Value) -> ir.Value:
    """Return the earliest value on the way to x that has the batch of x by name, so that x itself is free to go."""
    while (producer := x.producer()) is not None and producer.inputs and producer.inputs[0] is not None:
        before = producer.inputs[0]
        if not _is_known(_batch(x)) or _batch(before) != _batch(x):
            break
        x = before
    return x


def _batch(x: ir.Value) -> int | ir.SymbolicDim | None:
    return x.shape[0] if x.shape is not None and len(x.shape) > 0 else None


def _is_known(size: int | ir.SymbolicDim | None) -> bool:
    """True for a number, and for a name that stands for the same number everywhere in the graph."""
    return size is not None and dims_are_known([size])


def _is_expanded(cache: ir.Value, x: ir.Value) -> bool:
    """True for the result of _expand, where no shape says so."""
    shape = _operand(cache, "Expand", 1)
    batch = None if shape is None else _operand(shape, "Concat", 0)
    return batch is not None and _operand(batch, "Shape", 0) is x


def _operand(value: ir.Value, op_type: str, index: int) -> ir.Value | None:
    """Return an input of the node that makes the value; None where that is another operator."""
    node = value.producer()
    return node.inputs[index] if node is not None and is_standard(node, op_type) else None
