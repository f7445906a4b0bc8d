"""The step of a decoder over caches of a fixed length: from token to token no shape changes, and nothing is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from qcompile.backends.decoder_caches import PAST, find_caches
from qcompile.decoder_inputs import ABSENT, ONES, POSITIONS
from qcompile.errors import UnsupportedError
from qcompile.graph import Names, bodies, constant, is_standard, readers
from qcompile.unused_nodes import RemoveUnusedNodes

_OPSET = 24
"""The first with TensorScatter, and with Attention over caches that are not full."""
_POSITIONS = 2
"""Axis of a cache, [batch, heads, positions, size]."""
_NEW, _FILLED = (1, 2), 6
"""Inputs of Attention: new keys and values, and of how many positions they are."""
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Max", "Min", "Cast", "Where"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)
_ON_SIZES = (*_ELEMENTWISE, "Squeeze", "Unsqueeze", "Concat", "Gather", "Slice", "Reshape", "Identity")
_READ_NUMBERS = ("Slice", "Reshape")
"""Of these, operators that wait for what all inputs but the first hold."""
_SAY_SHAPES = {("Range", 1), ("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Tile", 1), ("Slice", 2)}
"""Operators and inputs of them that say how much there is, and nothing of its values."""


@dataclasses.dataclass(frozen=True)
class StaticStep:
    """A decoder that reads one token.

    Attributes:
        model: its inputs are the token, int64 [1, 1], `length`, and the caches [1, heads, capacity, size], where the
            keys and values of the token are written behind those of `length` tokens. Its output is the logits.
        length: name of the input that says how many tokens the caches hold.
    """

    model: ir.Model
    length: str


def static_step(model: ir.Model, capacity: int) -> StaticStep:
    """Return what a decoder computes of one more token, over caches with room for `capacity`.

    Attention(q, k, v, mask, past k, past v) -> Attention(q, TensorScatter(past k, k), TensorScatter(past v, v), mask),
    of which it reads the first `length` + 1. What follows from the length of the cache becomes two things: a size of
    something, which is that of full caches, and a number that something is computed with, as a position is, which
    follows from `length`. The mask is all ones, and positions are counted on.

    The model is not changed, and shares its weights. What a mask or positions of full caches are otherwise read for, a
    sum over them for example, is not followed: compare the first token with that of the model.

    Raises:
        UnsupportedError: the model is no decoder with a cache; or something but attention and the length of it is read
            of a cache, or the shape of the mask; or it does with the length what is no arithmetic, such as a slice
            that begins there.
    """
    copy = model.clone()
    caches = find_caches(copy)
    pasts = [value for value in copy.graph.inputs if value.name in {cache.past for cache in caches}]
    _check_readers(copy.graph, pasts)
    names = Names(copy.graph)
    length = ir.val(names.new("length"), ir.DataType.INT64, [1])
    tape = ir.tape.Tape(copy.graph)
    for value in (value for node in copy.graph.all_nodes() for value in node.outputs):
        value.shape = None  # of names of sizes that are numbers now
    _Lengths(tape, names, length, capacity).replace_in(copy.graph, pasts)
    _replace_computed(copy.graph, tape, names, length, capacity)
    _write_in_place(copy.graph, tape, names, pasts, length)
    presents = {cache.present for cache in caches}
    copy.graph.outputs[:] = [value for value in copy.graph.outputs if value.name not in presents]
    for value in copy.graph.inputs:
        value.shape = _full(value, capacity) if value in pasts else ir.Shape([1, 1])
    copy.graph.inputs.append(length)
    copy.graph.opset_imports[""] = max(copy.graph.opset_imports[""], _OPSET)
    RemoveUnusedNodes()(copy)  # a cache that something else reads is not written in place
    copy.graph.sort()
    return StaticStep(copy, str(length.name))


def _check_readers(graph: ir.Graph, pasts: Collection[ir.Value]) -> None:
    """Refuse what would see that caches are longer than what they hold."""
    computed = {value: value.metadata_props.get(ABSENT) for value in graph.inputs if value not in pasts}
    for value in (*pasts, *(value for value, kind in computed.items() if kind == ONES)):
        for node in readers(value):
            sees = not is_standard(node, "Shape", "Attention") if value in pasts else is_standard(node, "Shape", "Size")
            if sees or node.graph is not graph:
                reason = f"{node.op_type} reads {value.name}, which is longer than what it holds"
                raise UnsupportedError(f"node {node.name!r}", reason, "Use caches that grow with each token")
    for value, kind in computed.items():
        if kind in (ONES, POSITIONS) and (value.shape is None or len(value.shape) != 2):
            raise UnsupportedError(f"input {value.name!r}", f"its shape is {value.shape}", "Give it two axes")


def _full(past: ir.Value, positions: int) -> ir.Shape:
    """The shape of a cache of one sequence."""
    match past.shape and tuple(past.shape):
        case (_, int() as heads, _, int() as size):
            return ir.Shape([1, heads, positions, size])
    raise UnsupportedError(f"input {past.name!r}", f"its shape is {past.shape}", "Fix its heads and their size")


class _Lengths:
    """Sizes of full caches, and the numbers that belong to them where data are computed."""

    def __init__(self, tape: ir.tape.Tape, names: Names, length: ir.Value, capacity: int) -> None:
        self._tape, self._names, self._length, self._capacity = tape, names, length, capacity
        self._sizes: set[ir.Value] = set()
        self._numbers: dict[ir.Value, ir.Value] = {}

    def replace_in(self, graph: ir.Graph, pasts: Collection[ir.Value]) -> None:
        """Let sizes of something be those of full caches, and numbers follow from the length."""
        nodes = list(graph)
        for past in pasts:
            for node in readers(past):
                if is_standard(node, "Shape"):
                    self._measure(node, np.array(_full(past, self._capacity - 1).numpy()))
        for node in nodes:
            self._look_at(node)

    def _measure(self, node: ir.Node, shape: np.ndarray) -> None:
        """Shape(past) -> a constant, as if the new token filled the cache; and the same with the length in it."""
        part = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape)))
        size = self._constant(f"{node.outputs[0].name}.full", shape[part])
        node.outputs[0].replace_all_uses_with(size)
        self._sizes.add(size)
        counted = np.arange(len(shape))[part] == _POSITIONS
        if counted.any():
            others = self._constant(f"{size.name}.others", np.where(counted, 0, shape[part]))
            places = self._constant(f"{size.name}.counted", counted.astype(np.int64))
            self._numbers[size] = self._tape.op("Add", [self._tape.op("Mul", [self._length, places]), others])

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self._tape.initializer(ir.tensor(array, name=self._names.new(name)))

    def _look_at(self, node: ir.Node) -> None:
        hanging = {index: value for index, value in enumerate(node.inputs) if value in self._numbers}
        inner = (each for body in bodies(node) for each in body.all_nodes())
        inside = any(value in self._numbers for each in inner for value in each.inputs)
        first_alone = set(hanging) <= {0} or not is_standard(node, *_READ_NUMBERS)
        if is_standard(node, *_ON_SIZES) and all(map(self._is_size, node.inputs)) and first_alone:
            self._sizes.update(node.outputs)
            if hanging:
                inputs = [None if value is None else self._numbers.get(value, value) for value in node.inputs]
                self._numbers[node.outputs[0]] = self._tape.op(node.op_type, inputs, dict(node.attributes))
        elif is_standard(node, "Range") and 0 in hanging and 2 not in hanging:
            self._shift(node, hanging[0])
        elif is_standard(node, *_ELEMENTWISE):
            for index, value in hanging.items():
                node.replace_input_with(index, self._numbers[value])
        elif inside or any((node.op_type, index) not in _SAY_SHAPES for index in hanging):
            reason = f"{node.op_type} reads the length of the cache, and is no arithmetic"
            raise UnsupportedError(f"node {node.name!r}", reason, "Use caches that grow with each token")

    def _is_size(self, value: ir.Value | None) -> bool:
        known = value is None or value in self._sizes or constant(value) is not None
        return known or is_standard(value.producer() if value is not None else None, "Shape", "Constant")

    def _shift(self, node: ir.Node, start: ir.Value) -> None:
        """Range(size, ..) -> the same from its number on."""
        uses = [(use.node, use.idx) for use in node.outputs[0].uses()]
        moved = self._tape.op("Add", [node.outputs[0], self._tape.op("Sub", [self._numbers[start], start])])
        for reader, index in uses:
            reader.replace_input_with(index, moved)


def _replace_computed(graph: ir.Graph, tape: ir.tape.Tape, names: Names, length: ir.Value, capacity: int) -> None:
    """Make the mask a constant, and let positions follow from the length: nobody gives them."""
    for value in list(graph.inputs):
        kind = value.metadata_props.get(ABSENT)
        if value.dtype is None or kind not in (ONES, POSITIONS):
            continue
        if kind == ONES:
            ones = np.ones((1, capacity), value.dtype.numpy())
            given = tape.initializer(ir.tensor(ones, name=names.new(f"{value.name}.ones")))
        else:
            shape = tape.initializer(ir.tensor([1, 1], name=names.new(f"{value.name}.shape")))
            given = tape.op("Cast", [tape.op("Reshape", [length, shape])], {"to": value.dtype})
        value.replace_all_uses_with(given)
        graph.inputs.remove(value)


def _write_in_place(
    graph: ir.Graph, tape: ir.tape.Tape, names: Names, pasts: Collection[ir.Value], length: ir.Value
) -> None:
    """Let attention read the caches, with the new keys and values in them, as far as they are filled."""
    one = tape.initializer(ir.tensor([1], name=names.new(f"{length.name}.one")))
    filled = tape.op("Add", [length, one])
    for node in [node for node in graph if is_standard(node, "Attention") and set(node.inputs) & set(pasts)]:
        if any(value.uses() for value in node.outputs[1:]):
            reason = "something else reads the caches that it returns"
            raise UnsupportedError(f"node {node.name!r}", reason, "Use caches that grow with each token")
        inputs = [*node.inputs, *[None] * (_FILLED - len(node.inputs)), filled]
        for new, past in zip(_NEW, PAST, strict=True):
            cache, inputs[past] = inputs[past], None
            assert cache is not None
            shape = tape.initializer(ir.tensor(_full(cache, 1).numpy(), name=names.new(f"{cache.name}.token")))
            token = tape.op("Reshape", [inputs[new], shape])
            inputs[new] = tape.op("TensorScatter", [cache, token, length], {"axis": _POSITIONS})
        attended = tape.op("Attention", inputs, dict(node.attributes))
        node.outputs[0].replace_all_uses_with(attended, replace_graph_outputs=True)
