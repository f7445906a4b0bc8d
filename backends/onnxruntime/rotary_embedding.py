"""RotaryEmbedding in the form that ONNX Runtime accepts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime import dequantize


def legalize_rotary_embedding(model: ir.Model) -> None:
    """RotaryEmbedding(x, cos, sin) with caches of batch 1  ->  the caches expanded to the batch of x.

    Without position ids the operator takes caches [batch, sequence, half]. torch's exporter makes them [1, sequence,
    half], which ONNX broadcasts and ONNX Runtime refuses. Does not apply to caches that are read through position
    ids, nor where the batch of x is known to be the batch of the caches. Layers of the same batch share the result.
    """
    expanded: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(model.graph):
        if not graph.is_standard(node, "RotaryEmbedding") or (len(node.inputs) > 3 and node.inputs[3] is not None):
            continue
        x = node.inputs[0]
        assert x is not None
        batch = x.shape[0] if x.shape is not None and len(x.shape) > 0 else None
        known = _known(batch)
        for index in (1, 2):
            cache = node.inputs[index]
            assert cache is not None
            if (known and cache.shape is not None and cache.shape[0] == batch) or _is_expanded(cache, x):
                continue
            key = (cache, batch if known else x)
            if key not in expanded:
                expanded[key] = _expand(model, node, cache, x)
            node.replace_input_with(index, expanded[key])


def _expand(model: ir.Model, node: ir.Node, cache: ir.Value, x: ir.Value) -> ir.Value:
    ones = dequantize.register(model, "qcompile.rotary_ones", np.ones(2, np.int64))
    batch = ir.node("Shape", [_upstream(x)], attributes={"start": 0, "end": 1})
    shape = ir.node("Concat", [batch.outputs[0], ones], attributes={"axis": 0})
    expand = ir.node("Expand", [cache, shape.outputs[0]])
    model.graph.insert_before(node, [batch, shape, expand])
    if x.shape is not None and len(x.shape) > 0 and cache.shape is not None:
        expand.outputs[0].shape = ir.Shape([x.shape[0], *cache.shape[1:]])
    expand.outputs[0].type = cache.type
    return expand.outputs[0]


def _upstream(x: ir.Value) -> ir.Value:
    """Return the earliest value on the way to x that has the batch of x by name, so that x itself is free to go."""
    while (producer := x.producer()) is not None and producer.inputs and producer.inputs[0] is not None:
        before = producer.inputs[0]
        if not x.shape or not before.shape or not _known(x.shape[0]) or before.shape[0] != x.shape[0]:
            break
        x = before
    return x


def _known(size: int | ir.SymbolicDim | None) -> bool:
    """True for a number, and for a name that stands for the same number everywhere in the graph."""
    return isinstance(size, int) or (size is not None and size.value is not None)


def _is_expanded(cache: ir.Value, x: ir.Value) -> bool:
    """True for the result of _expand."""
    expand = cache.producer()
    if expand is None or not graph.is_standard(expand, "Expand") or expand.inputs[1] is None:
        return False
    shape = expand.inputs[1].producer()
    if shape is None or not graph.is_standard(shape, "Concat") or shape.inputs[0] is None:
        return False
    batch = shape.inputs[0].producer()
    return batch is not None and graph.is_standard(batch, "Shape") and batch.inputs[0] is x
