"""A cache that is written in place, held in int8: com.microsoft.GroupQueryAttention on integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.backends.onnxruntime.linears import CONTRIB
from qcompile.graph import Names
from qcompile.initializers import new_initializer, shared_initializer

_PASTS, _TOTAL, _INPUTS = (3, 4), 6, 9
"""Of GroupQueryAttention: old keys and values, how many keys there are, and how many inputs come before those that
`attend_in_place` does not write."""

_SCALES = 12
"""Place of the scales of keys; that of values is behind it."""


def hold_in_integers(model: ir.Model, scales: Mapping[str, np.ndarray], *, floats_outside: bool) -> None:
    """GroupQueryAttention over float32 -> If(all tokens are new, the same with its results rounded, over int8).

    For one token over 1,000 the operator then reads a quarter of the bytes: SmolLM2 of 135 M parameters in 4 bits gives
    160 tokens/s where it gave 133, behind 990 tokens (2 threads, Zen 5, onnxruntime 1.31; medians of one run). For many
    tokens its kernel of integers is slow: a prompt of 990 takes twice as long. So a prompt, which has no past, attends
    in float32, more exactly too, and what it leaves behind is rounded, in 2% of its time. The rest of a longer buffer
    stays as it is, which takes a copy of it: 8,192 positions take as long as 1,054, within what timings differ.

    Args:
        model: lowered, with the cache written in place; rewritten.
        scales: of all caches by the names of their inputs, float32 [1, heads, 1, size].
        floats_outside: inputs and outputs stay float32, for who runs it as the portable graph; else they are int8.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention" and _is_held(node, scales)]
    if not nodes:
        return
    names = Names(model.graph)
    sequence, condition = _is_prompt(model.graph, nodes[0], names)
    for node in nodes:
        _Attention(model.graph, node, names, sequence, floats_outside).write(condition, scales)


def _is_held(node: ir.Node, scales: Mapping[str, np.ndarray]) -> bool:
    return all((past := node.inputs[place]) is not None and past.name in scales for place in _PASTS)


def _is_prompt(graph: ir.Graph, first: ir.Node, names: Names) -> tuple[ir.Value, ir.Value]:
    """Return how many tokens are new, int64 [1], and whether these are all, and several."""
    one = shared_initializer(graph, "cache.one", np.array([1], np.int64))
    tape = ir.tape.Tape()
    sequence = tape.op("Shape", [first.inputs[0]], {"start": 1, "end": 2})
    total = tape.op("Cast", [first.inputs[_TOTAL]], {"to": ir.DataType.INT64})
    both = tape.op("And", [tape.op("Equal", [sequence, total]), tape.op("Greater", [sequence, one])])
    condition = tape.op("Squeeze", [both])
    _name(tape.nodes, "cache", names)
    graph.insert_before(first, tape.nodes)
    return sequence, condition


def _name(nodes: Sequence[ir.Node], prefix: str, names: Names) -> None:
    for node in nodes:
        node.name = names.new(f"{prefix}.{node.op_type.lower()}")
        for value in node.outputs:
            value.name = names.new(f"{node.name}.value")


@dataclasses.dataclass(frozen=True)
class _Attention:
    """Writes one attention.

    Attributes:
        graph: that it is in.
        node: GroupQueryAttention over float32.
        names: that are taken.
        sequence: how many tokens are new, int64 [1].
        floats_outside: inputs and outputs stay float32.
    """

    graph: ir.Graph
    node: ir.Node
    names: Names
    sequence: ir.Value
    floats_outside: bool

    def write(self, condition: ir.Value, scales: Mapping[str, np.ndarray]) -> None:
        """Replace the node; inputs and outputs of the graph keep their names."""
        pasts = [value for place in _PASTS if (value := self.node.inputs[place]) is not None]
        steps = [new_initializer(self.graph, f"{past.name}.scale", scales[str(past.name)]) for past in pasts]
        held = [self._integers(past, step) for past, step in zip(pasts, steps, strict=True)]
        branches = {"then_branch": self._prompt(held, steps), "else_branch": self._token(held, steps)}
        choice = ir.node("If", [condition], branches, num_outputs=3, name=str(self.node.name))
        choice.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, choice)
        result, *presents = self.node.outputs
        _take_over(result, choice.outputs[0])
        for old, new, step in zip(presents, choice.outputs[1:], steps, strict=True):
            if self.floats_outside:
                new.name, new.shape, new.type = self.names.new(f"{old.name}.integers"), old.shape, _INT8
                _take_over(old, self._floats(new, step))
            else:
                _take_over(old, new)
                new.type = _INT8
        self.graph.remove(self.node, safe=True)

    def _integers(self, past: ir.Value, step: ir.Value) -> ir.Value:
        if not self.floats_outside:
            past.type = _INT8
            return past
        tape = ir.tape.Tape()
        rounded = self._rounded(tape, past, step)
        _name(tape.nodes, str(past.name), self.names)
        rounded.shape, rounded.type = past.shape, _INT8
        self.graph.insert_before(self.node, tape.nodes)
        return rounded

    def _rounded(self, tape: ir.tape.Tape, value: ir.Value, step: ir.Value) -> ir.Value:
        one, zero = self._constant("unit", np.float32(1)), self._constant("zero", np.int8(0))
        return tape.op("QuantizeLinear", [tape.op("Div", [value, step]), one, zero])

    def _floats(self, integers: ir.Value, step: ir.Value) -> ir.Value:
        tape = ir.tape.Tape()
        found = tape.op("Mul", [tape.op("Cast", [integers], {"to": ir.DataType.FLOAT}), step])
        _name(tape.nodes, str(integers.name), self.names)
        self.graph.insert_before(self.node, tape.nodes)
        return found

    def _prompt(self, held: Sequence[ir.Value], steps: Sequence[ir.Value]) -> ir.Graph:
        """Attend in float32, and write the rounded results in front of what the rest of the buffer holds."""
        tape = ir.tape.Tape()
        inputs = [None if place in _PASTS else value for place, value in enumerate(self.node.inputs)]
        result, *new = self._attend(tape, inputs, self._settings())
        end, axis = self._constant("end", [np.iinfo(np.int64).max]), self._constant("axis", [2])
        outputs = [result]
        for past, value, step in zip(held, new, steps, strict=True):
            rest = tape.op("Slice", [past, self.sequence, end, axis])
            outputs.append(tape.op("Concat", [self._rounded(tape, value, step), rest], {"axis": 2}))
        return self._branch("prompt", tape, outputs)

    def _token(self, held: Sequence[ir.Value], steps: Sequence[ir.Value]) -> ir.Graph:
        tape = ir.tape.Tape()
        inputs = [*self.node.inputs[: _PASTS[0]], *held, *self.node.inputs[_PASTS[1] + 1 : _INPUTS]]
        padded = [*inputs, *[None] * (_SCALES - len(inputs)), *steps]
        kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        return self._branch("token", tape, self._attend(tape, padded, {**self._settings(), **kinds}))

    def _attend(
        self, tape: ir.tape.Tape, inputs: Sequence[ir.Value | None], settings: Mapping[str, Any]
    ) -> Sequence[ir.Value]:
        return tape.op_multi_out(self.node.op_type, inputs, settings, num_outputs=3, domain=CONTRIB)

    def _settings(self) -> dict[str, Any]:
        return {name: attribute.value for name, attribute in self.node.attributes.items()}

    def _branch(self, word: str, tape: ir.tape.Tape, outputs: Sequence[ir.Value]) -> ir.Graph:
        _name(tape.nodes, f"{self.node.name}.{word}", self.names)
        return ir.Graph([], outputs, nodes=tape.nodes, name=word, opset_imports=dict(self.graph.opset_imports))

    def _constant(self, word: str, number: Any) -> ir.Value:
        return shared_initializer(self.graph, f"cache.{word}", np.asarray(number))


_INT8 = ir.TensorType(ir.DataType.INT8)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.shape, new.type = old.shape, old.type
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
