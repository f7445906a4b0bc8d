"""Attention masks in the form that ONNX Runtime accepts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import shared_initializer


def legalize_attention_masks(model: ir.Model) -> None:
    """Attention(q, k, v, mask of one query)  ->  Attention(q, k, v, the mask for every query).

    A padding mask is the same for every query, [batch, 1, 1, keys]; ONNX broadcasts it, and ONNX Runtime refuses it
    ("inconsistent q_sequence_length"). Does not apply to other masks, nor where there is one query. Layers whose
    queries have the same length by name share the result.
    """
    expanded: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(model.graph):
        mask = node.inputs[3] if graph.is_standard(node, "Attention") and len(node.inputs) > 3 else None
        q = node.inputs[0] if mask is not None else None
        if mask is None or q is None or q.shape is None or mask.shape is None or len(mask.shape) < 2:
            continue
        axis = len(q.shape) - 2
        queries = q.shape[axis]
        if mask.shape[-2] != 1 or queries == 1:
            continue
        known = isinstance(queries, int) or queries.value is not None
        key = (mask, queries if known else q)
        if key not in expanded:
            expanded[key] = _expand(model, node, mask, q, axis)
        node.replace_input_with(3, expanded[key])


def _expand(model: ir.Model, node: ir.Node, mask: ir.Value, q: ir.Value, axis: int) -> ir.Value:
    assert mask.shape is not None
    assert q.shape is not None
    one = shared_initializer(model.graph, "qcompile.mask_keys", np.ones(1, np.int64))
    queries = ir.node("Shape", [q], attributes={"start": axis, "end": axis + 1})
    shape = ir.node("Concat", [queries.outputs[0], one], attributes={"axis": 0})
    expand = ir.node("Expand", [mask, shape.outputs[0]])
    model.graph.insert_before(node, [queries, shape, expand])
    expand.outputs[0].shape = ir.Shape([*mask.shape[:-2], q.shape[axis], mask.shape[-1]])
    expand.outputs[0].type = mask.type
    return expand.outputs[0]
