"""Keys and values of a cache in 8 bits: the word of the portable graph that rounds them, where it is, and its removal.

It is a function of the domain `qcompile` with a body of standard operators, which any runtime can run. A cache goes in
and out as float32; a backend that keeps it between two runs may hold the integers alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.graph import Names, constant_array, is_standard
from qcompile.initializers import remove_unused
from qcompile.qdq import DOMAIN, PER_CACHE

PASTS, PRESENTS = (4, 5), (1, 2)
"""Inputs and outputs of Attention: old keys and values, and those with the new ones behind them."""

_LARGEST = 127

_HEADER = f"""
<ir_version: 10, opset_import: ["" : 13, "{DOMAIN}" : 1]>
graph (float[n] x) => (float[n] y) {{ y = Identity (x) }}
<domain: "{DOMAIN}", opset_import: ["" : 13]>
"""

_BODY = """
QuantizeDequantizeCache (x, scale) => (y) {
    largest = Constant <value = float {127.0}> ()
    smallest = Constant <value = float {-128.0}> ()
    steps = Div (x, scale)
    rounded = Round (steps)
    integers = Clip (rounded, smallest, largest)
    y = Mul (integers, scale)
}
"""


def is_rounding(node: ir.Node | None) -> bool:
    """Whether a node is the word: QuantizeDequantizeCache(x, scale), float32 [batch, heads, positions, size] as int8.

    The scale is float32 [1, heads, 1, size]. What is rounded already stays as it is.
    """
    return node is not None and (node.domain, node.op_type) == (DOMAIN, PER_CACHE)


def cache_inputs(attention: ir.Node) -> tuple[ir.Value, ...]:
    """Return old keys and values where they are inputs of the graph whose new ones are its outputs, or nothing.

    Nothing too of a cache that is rounded.
    """
    if not is_standard(attention, "Attention") or len(attention.inputs) < 6 or len(attention.outputs) < 3:
        return ()
    pasts = [attention.inputs[place] for place in PASTS]
    found = tuple(value for value in pasts if value is not None and value.is_graph_input())
    written = all(attention.outputs[place].is_graph_output() for place in PRESENTS)
    return found if len(found) == len(PASTS) and written else ()


def round_cache(model: ir.Model, attention: ir.Node, scales: tuple[ir.Value, ir.Value]) -> None:
    """Let an attention read and give out its keys and values rounded; inputs and outputs keep their names.

    Args:
        model: with the attention in its graph, opset 13 or later.
        attention: of `cache_inputs`, nothing of it rounded yet.
        scales: of keys and of values.
    """
    made = ir.from_onnx_text(_HEADER + _BODY).functions[(DOMAIN, PER_CACHE, "")]
    made.opset_imports[""] = model.opset_imports[""]
    model.functions.setdefault(made.identifier(), made)
    model.opset_imports[DOMAIN] = 1
    names = Names(model.graph)
    for place, scale in zip(PASTS, scales, strict=True):
        past = attention.inputs[place]
        assert past is not None
        node = _word(names, past, scale)
        node.outputs[0].name = names.new(f"{past.name}.rounded")
        model.graph.insert_before(attention, node)
        attention.replace_input_with(place, node.outputs[0])
    for place, scale in zip(PRESENTS, scales, strict=True):
        present = attention.outputs[place]
        node = _word(names, present, scale)
        model.graph.insert_after(attention, node)
        name = present.name
        present.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
        node.replace_input_with(0, present)
        present.name, node.outputs[0].name = names.new(f"{name}.exact"), name


def without_rounding(model: ir.Model) -> dict[str, np.ndarray]:
    """Take the rounding of all caches out of a model, and return the scale of each by the name of its input."""
    scales: dict[str, np.ndarray] = {}
    for node in [node for node in model.graph if is_rounding(node)]:
        value, scale = node.inputs
        array = constant_array(scale)
        assert value is not None
        assert scale is not None
        assert array is not None
        if value.is_graph_input():
            scales[str(value.name)] = array
        name, result = node.outputs[0].name, node.outputs[0]
        given_out = result.is_graph_output()
        node.outputs[0].name = None
        result.replace_all_uses_with(value, replace_graph_outputs=True)
        if given_out:
            value.name = name
        model.graph.remove(node, safe=True)
        remove_unused([scale])
    model.functions.pop((DOMAIN, PER_CACHE, ""), None)
    return scales


def cache_scale(largest: np.ndarray, headroom: float) -> np.ndarray:
    """Return the scale, float32 [1, heads, 1, size], for a cache of numbers as large as [heads, size].

    Args:
        largest: magnitude of each channel of each head; of one that is always zero, 1 is taken.
        headroom: how many times as large they may be.
    """
    most = np.where(largest < np.finfo(np.float32).tiny * _LARGEST, 1.0, largest)
    return np.asarray(most * headroom / _LARGEST, np.float32)[None, :, None, :]


def _word(names: Names, value: ir.Value, scale: ir.Value) -> ir.Node:
    node = ir.node(PER_CACHE, [value, scale], domain=DOMAIN, name=names.new(f"{value.name}.{PER_CACHE}"))
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    return node
