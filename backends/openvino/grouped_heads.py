"""Attention whose keys and values have fewer heads than the queries, which OpenVINO computes for few shapes only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import register_initializer

KEY, VALUE = 1, 2
PRESENT_KEY, PRESENT_VALUE = 1, 2


def repeat_key_heads(model: ir.Model) -> None:
    """Attention(q, k, v) with fewer heads in k and v  ->  Attention(q, repeat(k), repeat(v)), each head in its place.

    Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", section 2.2. The front end of OpenVINO
    2026.4 takes the operator, and the plugin refuses to run it where batch or sequence are dynamic: it broadcasts the
    heads like a MatMul.

    Does not fire where the numbers of heads are not known, nor where the keys and values are results as well (a cache):
    those have to keep their heads.
    """
    for node in list(graph.all_nodes(model)):
        if not graph.is_standard(node, "Attention") or _returns_cache(node):
            continue
        heads = _flat_heads(node) or _separate_heads(node)
        if heads is None:
            continue
        queries, keys = heads
        if keys < queries and queries % keys == 0:
            indices = np.repeat(np.arange(keys, dtype=np.int64), queries // keys)
            for index in (KEY, VALUE):
                _repeat(node, index, indices)
            if _flat_heads(node) is not None:
                node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", queries)


def _returns_cache(node: ir.Node) -> bool:
    past = any(value is not None for value in node.inputs[4:6])
    present = node.outputs[PRESENT_KEY : PRESENT_VALUE + 1]
    return past or any(value.uses() or value.is_graph_output() for value in present)


def _flat_heads(node: ir.Node) -> tuple[int, int] | None:
    """Numbers of heads of queries and keys that are [batch, sequence, features]; None for other layouts."""
    queries, keys = (node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads"))
    return (queries, keys) if queries and keys else None


def _separate_heads(node: ir.Node) -> tuple[int, int] | None:
    """Numbers of heads of queries and keys that are [batch, heads, sequence, size]; None where they are not known."""
    shapes = [value.shape for value in node.inputs[:3] if value is not None]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    queries, keys, values = (shape[1] for shape in shapes if shape is not None)
    return (queries, keys) if isinstance(queries, int) and isinstance(keys, int) and keys == values else None


def _repeat(node: ir.Node, index: int, indices: np.ndarray) -> None:
    """Gather the heads of one input by these indices; flat features are taken apart for it."""
    value = node.inputs[index]
    assert value is not None
    name = f"{node.name or node.outputs[0].name}/repeat_{index}"
    if _flat_heads(node) is None:
        repeated = _insert(node, "Gather", value, _constant(node, f"{name}/heads", indices), name=name, axis=1)
    else:
        keys = int(indices.max()) + 1
        apart = _constant(node, f"{name}/apart_shape", [0, 0, keys, -1])
        together = _constant(node, f"{name}/together_shape", [0, 0, -1])
        heads = _insert(node, "Reshape", value, apart, name=f"{name}/apart")
        heads = _insert(node, "Gather", heads, _constant(node, f"{name}/heads", indices), name=name, axis=2)
        repeated = _insert(node, "Reshape", heads, together, name=f"{name}/together")
    node.replace_input_with(index, repeated)


def _insert(before: ir.Node, op_type: str, *inputs: ir.Value, name: str, **attributes: int) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = name, inputs[0].type
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node.outputs[0]


def _constant(node: ir.Node, name: str, numbers: Sequence[int] | np.ndarray) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    return register_initializer(node.graph, ir.tensor(np.asarray(numbers, np.int64), name=name))
