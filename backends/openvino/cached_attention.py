"""Attention over a cache in the form that OpenVINO's CPU plugin runs as one kernel, states and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.attention import MASKED, find_guard
from qcompile.backends.openvino.patterns import LAYOUT_ONLY, readers
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov

_COMPARISONS = ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual")


def attend_to_states(model: ov.Model) -> None:
    """Select(IsNaN(a), 0, a), a = ScaledDotProductAttention(q, Tile(k), Tile(v), b)  ->  a of Broadcast, with a number.

    k and v are Concat(Gather(ReadValue), new). The plugin keeps states in 8 bits, and appends to them without copying,
    only where nothing but Broadcast stands between them and the attention; and it has a kernel for masks of numbers
    alone: with a boolean one the first token took 4 times as long (measured, 2026.4). A row in which everything is
    masked gives an average, as in `decompose_attention`.

    Does not fire on attention that reads no state.
    """
    factory = opset()
    masks: dict[tuple[str, int], ov.Output] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        query, *pair = node.input_values()[:3]
        states = [_state(value) for value in pair]
        others = node.input_values()[3:]
        if any(state is None for state in states):
            continue
        if others and others[0].get_element_type().get_type_name() == "boolean":
            name = (others[0].get_node().get_name(), others[0].get_index())
            if name not in masks:
                masks[name] = factory.select(others[0], np.float32(0), MASKED).output(0)
            others[0] = masks[name]
        heads = query.get_partial_shape()[1].get_length()
        repeated = [_repeated(state, heads) for state in states if state is not None]
        causal = bool(node.get_attributes()["causal"])
        result = factory.scaled_dot_product_attention(query, *repeated, *others, causal=causal)
        result.set_friendly_name(node.get_friendly_name())
        guarded = find_guard(node) or node
        result.output(0).get_tensor().set_names(guarded.output(0).get_names())
        guarded.output(0).replace(result.output(0))
    model.validate_nodes_and_infer_types()


def attends_to_all_before(model: ov.Model) -> bool:
    """Whether every mask of an attention compares positions at most once: with those before, without a window.

    OpenVINO's paged attention, with which openvino_genai opens a folder by itself, leaves out any mask and takes all
    tokens before: of a decoder with windows the logits were off by a third of their range (measured, 2026.4).
    """
    attentions = [node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    return all(_comparisons(value) <= 1 for node in attentions for value in node.input_values()[3:4])


def _comparisons(value: ov.Output) -> int:
    """Count the comparisons that a value is computed from; those of shapes do not count."""
    seen: dict[str, ov.Node] = {}
    waiting = [value.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_name() not in seen and node.get_type_name() != "ShapeOf":
            seen[node.get_name()] = node
            waiting += [each.get_node() for each in node.input_values()]
    return sum(node.get_type_name() in _COMPARISONS for node in seen.values())


def _state(value: ov.Output) -> ov.Output | None:
    """Return the Concat(Gather(ReadValue), new) whose repeated heads a value is; None for other values."""
    node = value.get_node()
    while node.get_type_name() in (*LAYOUT_ONLY, "Tile"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Concat":
        return None
    old = node.input_value(0).get_node()
    kept = old.get_type_name() == "Gather" and old.input_value(0).get_node().get_type_name() == "ReadValue"
    assigned = any(port.get_node().get_type_name() == "Assign" for port in readers(node.output(0)))
    return node.output(0) if kept and assigned else None


def _repeated(state: ov.Output, heads: int) -> ov.Output:
    """Return the keys or values once for each head of the queries."""
    factory = opset()
    _, groups, _, size = state.get_partial_shape()
    if groups.get_length() == heads:
        return state
    times = np.array([1, 1, heads // groups.get_length(), 1, 1])
    wide = factory.broadcast(factory.unsqueeze(state, np.int64(2)), times, broadcast_spec="BIDIRECTIONAL")
    joined: ov.Output = factory.reshape(wide, np.array([0, heads, -1, size.get_length()]), True).output(0)
    return joined
