"""Attention behind a cache whose new state nobody reads, which ONNX Runtime does not compute."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph


def join_unread_caches(model: ir.Model) -> None:
    """Attention(q, k, v, mask, past_k, past_v)  ->  Attention(q, [past_k k], [past_v v], mask), presents unread.

    ONNX Runtime 1.31 takes unread outputs away from a node, and Attention then refuses to run: "does not support
    past_key provided and present_key being null". Calibration reads no presents. Does not apply where both are read,
    nor to keys and values [batch, sequence, heads * size], whose heads are in another place than those of the cache.
    """
    for node in list(graph.all_nodes(model)):
        if not graph.is_standard(node, "Attention") or len(node.inputs) < 6 or None in node.inputs[4:6]:
            continue
        presents = node.outputs[1:3]
        read = [bool(value.uses()) or value.is_graph_output() for value in presents]
        keys = node.inputs[1]
        if (len(read) == 2 and all(read)) or any(read) or keys is None or keys.shape is None or len(keys.shape) != 4:
            continue
        for place, past in ((1, node.inputs[4]), (2, node.inputs[5])):
            new = node.inputs[place]
            name = f"{node.outputs[0].name}.{('keys', 'values')[place - 1]}"
            joined = ir.node("Concat", [past, new], {"axis": 2}, name=name)
            joined.outputs[0].name = name
            assert isinstance(node.graph, ir.Graph)
            node.graph.insert_before(node, joined)
            node.replace_input_with(place, joined.outputs[0])
        node.resize_inputs(4)
        node.resize_outputs(1)
