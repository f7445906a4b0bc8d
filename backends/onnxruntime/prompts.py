"""Prompts in 8 bits: the products of many tokens at once by integer kernels, those of one by the weights in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime.last_positions import by_position
from qcompile.backends.onnxruntime.linears import CONTRIB
from qcompile.initializers import register_initializer, shared_initializer

_ZERO_POINT = 128
"""Of activations in uint8, symmetric around it: kernels for uint8 x int8 are the fast ones."""

_MOST = 127
_MIDDLE = 8
"""What MatMulNBits subtracts from numbers of 4 bits; none of them is further from it."""

_SMALLEST = 1e-12
"""Scale of a row of zeros."""


def multiply_prompts_in_integers(model: ir.Model, ids: ir.Value, logits: ir.Value, fewest: int) -> bool:
    """Layers  ->  If(sequence >= fewest, layers with integer products, layers), of those with weights in blocks.

    MatMulNBits is made for one token: with 990 of them it takes 2.5 ms where rounding each token to 8 bits, a product
    of int8 and the scales take 0.9 (576 x 960, 2 threads, Zen 5, onnxruntime 1.31); the first token of SmolLM2 of 135 M
    parameters then comes after 410 ms, not 730. It costs accuracy, 0.04 nats there (2,044 tokens of prose): the weights
    are rounded once more, to 8 bits with a scale for each output. ONNX Runtime does that when it loads the model, so
    the file stays as small, but loading takes 1 s, not 0.15, and leaves 950 MB in use, not 170: one byte for each
    weight, and what the steps of it took.
    Does not apply to weights with zero points, nor to what is behind the last attention, which is computed for one
    token of a prompt alone; see `keep_last_positions`.

    Args:
        model: as lowered; its graph is changed.
        ids: input of the graph, [batch, sequence].
        logits: output of the graph, [batch, sequence, vocabulary].
        fewest: tokens that make a prompt.

    Returns:
        Whether there was such a product.
    """
    part = model.graph
    assert logits.shape is not None
    sequence = logits.shape[1]
    tail = {} if isinstance(sequence, int) else by_position(model, logits, sequence)
    layers = _layers(part, tail)
    if not layers:
        return False
    results = [value for node in layers for value in node.outputs if _is_read_outside(value, layers)]
    integers = {node: _integers(part, node) for node in layers if _is_in_blocks(node)}
    condition = _is_prompt(part, ids, fewest)
    branches = {
        "then_branch": _Branch("prompt", part, integers).write(list(layers), results),
        "else_branch": _Branch("token", part, {}).write(list(layers), results),
    }
    choice = ir.node("If", [condition], branches, num_outputs=len(results), name=graph.unique_name(part, "layers"))
    part.insert_before(next(iter(layers)), choice)
    for old, new in zip(results, choice.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    part.remove(list(layers), safe=True)
    part.sort()
    return True


def _is_in_blocks(node: ir.Node) -> bool:
    return (
        node.op_type == "MatMulNBits"
        and node.domain == CONTRIB
        and node.attributes.get_int("bits", 4) == 4
        and len([value for value in node.inputs if value is not None]) == 3
    )


def _layers(part: ir.Graph, tail: Mapping[ir.Node, None]) -> dict[ir.Node, None]:
    """Return products with weights in blocks and what depends on them, but for the tail: nothing comes in between."""
    found: dict[ir.Node, None] = {}
    for node in part:
        behind = any(value is not None and value.producer() in found for value in node.inputs)
        if node not in tail and (behind or _is_in_blocks(node)):
            found[node] = None
    return found


def _is_read_outside(value: ir.Value, layers: Mapping[ir.Node, None]) -> bool:
    return value.is_graph_output() or any(use.node not in layers for use in value.uses())


def _is_prompt(part: ir.Graph, ids: ir.Value, fewest: int) -> ir.Value:
    least = shared_initializer(part, "prompt.least", np.array([fewest], np.int64))
    tape = ir.tape.Tape()
    length = tape.op("Shape", [ids], {"start": 1, "end": 2})
    found = tape.op("Squeeze", [tape.op("GreaterOrEqual", [length, least])])
    names = graph.Names(part)
    for node in tape.nodes:
        node.name = node.outputs[0].name = names.new(f"prompt.{node.op_type.lower()}")
    part.insert_before(next(iter(part)), tape.nodes)
    return found


def _integers(part: ir.Graph, product: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Write int8 [K, N] as operators of the packed weight, which ONNX Runtime runs at load, and scales [N].

    The scale of a block becomes a share of the largest one of its output, in 8 bits, so that no number is ever float:
    seven bytes for each weight while it is loaded, where the same by way of float takes 36.
    """
    packed, array = product.inputs[1], graph.constant_array(product.inputs[2])
    assert packed is not None
    assert array is not None
    inputs, outputs = product.attributes.get_int("K", 0), product.attributes.get_int("N", 0)
    block = product.attributes.get_int("block_size", 0)
    scales = array.reshape(outputs, -1)
    blocks = scales.shape[1]
    largest = np.maximum(np.abs(scales).max(axis=1), _SMALLEST)
    shares = np.rint(scales / largest[:, None] * _MOST).astype(np.int8)
    names = graph.Names(part)
    tape = ir.tape.Tape()

    def own(word: str, numbers: np.ndarray) -> ir.Value:
        return register_initializer(part, ir.tensor(numbers, name=names.new(f"{product.outputs[0].name}.{word}")))

    def shared(word: str, number: float | list[int], dtype: type) -> ir.Value:
        return shared_initializer(part, f"prompt.{word}", np.array(number, dtype))

    low = tape.op("BitwiseAnd", [packed, shared("low", 15, np.uint8)])
    high = tape.op("BitShift", [packed, shared("four", 4, np.uint8)], {"direction": "RIGHT"})
    # Each block is a channel of a convolution of one weight: of the integer operators that ONNX Runtime runs at load,
    # the one that takes 0.3 ms for a million weights, where a product of matrices takes 18.
    channels = shared(f"channels_{block}", [1, -1, block], np.int64)
    halves = tape.op("Cast", [tape.op("Concat", [low, high], {"axis": -1})], {"to": ir.DataType.INT8})
    signals = tape.op("Reshape", [halves, channels])
    one, zero = shared("one", 1, np.float32), shared("zero", 0, np.int8)
    factors = [own("shares", shares.reshape(-1, 1, 1)), shared("eighth", 1 / _MIDDLE, np.float32), zero]
    values = [signals, one, shared("middle", _MIDDLE, np.int8), *factors, one, zero]
    scaled = tape.op("QLinearConv", values, {"group": outputs * blocks})
    places = shared(f"halves_{outputs}_{blocks}_{block}", [outputs, blocks, 2, block // 2], np.int64)
    turned = tape.op("Transpose", [tape.op("Reshape", [scaled, places])], {"perm": [1, 3, 2, 0]})
    weight = tape.op("Reshape", [turned, shared(f"rows_{outputs}", [-1, outputs], np.int64)])
    if blocks * block != inputs:
        ends = [shared("first", [0], np.int64), shared(f"inputs_{inputs}", [inputs], np.int64)]
        weight = tape.op("Slice", [weight, *ends])
    for node in tape.nodes:
        node.name = node.outputs[0].name = names.new(f"{product.outputs[0].name}.{node.op_type.lower()}")
    part.insert_before(next(iter(part)), tape.nodes)
    return weight, own("channels", (largest * _MIDDLE / _MOST).astype(np.float32))


class _Branch:
    """Writes layers once more, as a branch of an If.

    Args:
        word: that the names begin with.
        around: graph that the branch is in.
        integers: products that are computed in integers, with their weights and scales.
    """

    def __init__(self, word: str, around: ir.Graph, integers: Mapping[ir.Node, tuple[ir.Value, ir.Value]]) -> None:
        self._word, self._around, self._integers = word, around, integers
        self._tape = ir.tape.Tape()
        self._values: dict[ir.Value, ir.Value] = {}
        self._rounded: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def write(self, layers: Sequence[ir.Node], results: Sequence[ir.Value]) -> ir.Graph:
        """Return the branch, whose outputs stand for the results of the layers."""
        for node in layers:
            outputs = self._product(node) if node in self._integers else self._copy(node)
            for old, new in zip(node.outputs, outputs, strict=True):
                new.shape, new.type = old.shape, old.type
                self._values[old] = new
        names = graph.Names(self._around)
        for node in self._tape.nodes:
            node.name = names.new(f"{self._word}.{node.name or node.op_type.lower()}")
            for value in node.outputs:
                value.name = names.new(f"{self._word}.{value.name or node.name}")
        outputs = [self._values[value] for value in results]
        return ir.Graph(
            [], outputs, nodes=self._tape.nodes, name=self._word, opset_imports=dict(self._around.opset_imports)
        )

    def _read(self, value: ir.Value | None) -> ir.Value | None:
        return None if value is None else self._values.get(value, value)

    def _copy(self, node: ir.Node) -> Sequence[ir.Value]:
        inputs = [self._read(value) for value in node.inputs]
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        return self._tape.op_multi_out(
            node.op_type, inputs, settings, num_outputs=len(node.outputs), domain=node.domain, name=node.name
        )

    def _product(self, node: ir.Node) -> Sequence[ir.Value]:
        x, (weight, scale) = self._read(node.inputs[0]), self._integers[node]
        assert x is not None
        if x not in self._rounded:
            self._rounded[x] = self._round(x)
        rounded, of_rows = self._rounded[x]
        one, middle = self._number("one", 1, np.float32), self._number("zero_point", _ZERO_POINT, np.uint8)
        values = [rounded, weight, one, scale, middle]
        scaled = self._tape.op("MatMulIntegerToFloat", values, domain=CONTRIB)
        return [self._tape.op("Mul", [scaled, of_rows], name=node.name)]

    def _round(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return uint8 around 128 and the scale of each row: max|x| / 127."""
        op = self._tape.op
        last = self._number("last", [-1], np.int64)
        most, least = (op(name, [x, last], {"keepdims": 1}) for name in ("ReduceMax", "ReduceMin"))
        share = self._number("share", 1 / _MOST, np.float32)
        scale = op(
            "Max",
            [
                op("Mul", [op("Max", [most, op("Neg", [least])]), share]),
                self._number("least_scale", _SMALLEST, np.float32),
            ],
        )
        values = [
            op("Div", [x, scale]),
            self._number("one", 1, np.float32),
            self._number("zero_point", _ZERO_POINT, np.uint8),
        ]
        return op("QuantizeLinear", values), scale

    def _number(self, word: str, number: float | list[int], dtype: type) -> ir.Value:
        return shared_initializer(self._around, f"prompt.{word}", np.array(number, dtype))
