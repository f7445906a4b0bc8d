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

_FEW = 8
"""New tokens up to which attention over integers takes less time behind a cache: behind one of 990, 2 tokens take 8 ms
so and 12 in float32, 8 take 17 and 22, 16 take 32 and 28, and 200 take 350 and 174 (as in `hold_in_integers`)."""

_SCALES = 12
"""Place of the scales of keys; that of values is behind it."""


def hold_in_integers(model: ir.Model, scales: Mapping[str, np.ndarray], *, floats_outside: bool) -> None:
    """GroupQueryAttention over float32 -> If(several tokens are new, the same, its results rounded, over int8).

    For one token over 1,000 the operator then reads a quarter of the bytes: SmolLM2 of 135 M parameters in 4 bits gives
    160 tokens/s where it gave 133, behind 990 tokens (2 threads, Zen 5, onnxruntime 1.31; medians of one run). For many
    tokens its kernel of integers is slow: a prompt of 990 takes twice as long, and so do 200 behind it. So prompts, and
    more than 8 tokens behind a cache, attend in float32, more exactly too: over what the old integers stand for, which
    stay as they are. What is new is rounded behind them, in 2% of the time of a prompt. The rest of a longer buffer
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
    lengths = _lengths(model.graph, nodes[0], names)
    for node in nodes:
        _Attention(model.graph, node, names, lengths, floats_outside).write(scales)


def _is_held(node: ir.Node, scales: Mapping[str, np.ndarray]) -> bool:
    return all((past := node.inputs[place]) is not None and past.name in scales for place in _PASTS)


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """How many tokens there are.

    Attributes:
        old: those of the cache, int64 [1].
        total: with the new ones, int64 [1].
        several: whether new ones attend in float32: a prompt, or more than a few, bool scalar.
    """

    old: ir.Value
    total: ir.Value
    several: ir.Value


def _lengths(graph: ir.Graph, first: ir.Node, names: Names) -> _Lengths:
    zero, one, few = (
        shared_initializer(graph, f"cache.{word}", np.array([number]))
        for word, number in (("zeroth", 0), ("one", 1), ("few", _FEW))
    )
    tape = ir.tape.Tape()
    sequence = tape.op("Shape", [first.inputs[0]], {"start": 1, "end": 2})
    total = tape.op("Unsqueeze", [tape.op("Cast", [first.inputs[_TOTAL]], {"to": ir.DataType.INT64}), zero])
    least = tape.op("Where", [tape.op("Equal", [sequence, total]), one, few])
    several = tape.op("Squeeze", [tape.op("Greater", [sequence, least])])
    found = _Lengths(tape.op("Sub", [total, sequence]), total, several)
    _name(tape.nodes, "cache", names)
    graph.insert_before(first, tape.nodes)
    return found


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
        lengths: of its cache.
        floats_outside: inputs and outputs stay float32.
    """

    graph: ir.Graph
    node: ir.Node
    names: Names
    lengths: _Lengths
    floats_outside: bool

    def write(self, scales: Mapping[str, np.ndarray]) -> None:
        """Replace the node; inputs and outputs of the graph keep their names."""
        pasts = [value for place in _PASTS if (value := self.node.inputs[place]) is not None]
        steps = [new_initializer(self.graph, f"{past.name}.scale", scales[str(past.name)]) for past in pasts]
        held = [self._integers(past, step) for past, step in zip(pasts, steps, strict=True)]
        branches = {"then_branch": self._several(held, steps), "else_branch": self._token(held, steps)}
        choice = ir.node("If", [self.lengths.several], branches, num_outputs=3, name=str(self.node.name))
        choice.metadata_props.update(self.node.metadata_props)
        self.graph.insert_before(self.node, choice)
        result, *integers = choice.outputs
        presents: Sequence[ir.Value] = integers
        for old, new in zip(self.node.outputs[1:], integers, strict=True):
            new.name, new.shape = self.names.new(f"{old.name}.integers"), old.shape
        if self.floats_outside:
            presents = [self._floats(new, step) for new, step in zip(integers, steps, strict=True)]
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], [], self.node.outputs, [result, *presents]
        )
        for new in integers:
            new.type = _INT8

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
        found = _multiplied(tape, integers, step)
        _name(tape.nodes, str(integers.name), self.names)
        self.graph.insert_before(self.node, tape.nodes)
        return found

    def _several(self, held: Sequence[ir.Value], steps: Sequence[ir.Value]) -> ir.Graph:
        """Attend in float32; write what is new, rounded, between the old integers and the rest of the buffer.

        A prompt has an empty past, which costs it 1 to 2% of its time; a branch of its own cost as much.
        """
        tape = ir.tape.Tape()
        start, end = self._constant("zeroth", [0]), self._constant("end", [np.iinfo(np.int64).max])
        old = [self._part(tape, past, start, self.lengths.old) for past in held]
        floats = [_multiplied(tape, integers, step) for integers, step in zip(old, steps, strict=True)]
        inputs = [*self.node.inputs[: _PASTS[0]], *floats, *self.node.inputs[_PASTS[1] + 1 :]]
        result, *presents = self._attend(tape, inputs, self._settings())
        outputs = [result]
        for past, integers, present, step in zip(held, old, presents, steps, strict=True):
            new = self._part(tape, present, self.lengths.old, self.lengths.total)
            written = [integers, self._rounded(tape, new, step), self._part(tape, past, self.lengths.total, end)]
            outputs.append(tape.op("Concat", written, {"axis": 2}))
        return self._branch("several", tape, outputs)

    def _part(self, tape: ir.tape.Tape, cache: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
        return tape.op("Slice", [cache, start, end, self._constant("axis", [2])])

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


def _multiplied(tape: ir.tape.Tape, integers: ir.Value, step: ir.Value) -> ir.Value:
    return tape.op("Mul", [tape.op("Cast", [integers], {"to": ir.DataType.FLOAT}), step])
