"""Small ONNX graphs from a list of choices, so that hypothesis can draw and shrink them.

Every value of a graph is float [n, 5, 8]; each step adds one, by an operator or a pattern that some pass looks for, of
values that are there already. So inputs are shared, branches meet again, weights are tied and outputs lie anywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
from hypothesis import strategies

TOKENS, CHANNELS, HEADS = 5, 8, 2
_HEADER = '<ir_version: 10, opset_import: ["" : 23, "own" : 1]>'
_FUNCTION = """
<domain: "own", opset_import: ["" : 23]>
SwishLike (x) => (y) { s = Sigmoid(x) y = Mul(x, s) }
"""


@dataclasses.dataclass(frozen=True)
class Step:
    """One value more.

    Attributes:
        kind: name of the pattern, a key of KINDS.
        sources: which of the values so far it reads, modulo their number.
        weight: which weight it reads; equal numbers share one.
    """

    kind: str
    sources: tuple[int, int, int]
    weight: int


@dataclasses.dataclass(frozen=True)
class Choices:
    """A graph to be built.

    Attributes:
        steps: in order.
        outputs: values that are outputs besides the last, modulo their number.
        overridable: weights that are inputs as well.
    """

    steps: tuple[Step, ...]
    outputs: frozenset[int]
    overridable: frozenset[int]


def _linear(y: str, x: str, w: str, b: str) -> str:
    return f"{y}_m = MatMul({x}, {w}) {y} = Add({y}_m, {b})"


def _attention(y: str, q: str, k: str, v: str) -> str:
    def heads(name: str, x: str, order: str) -> str:
        return f"{name}_r = Reshape({x}, split_heads) {name} = Transpose<perm = {order}>({name}_r)"

    return (
        f"{heads(f'{y}_q', q, '[0, 2, 1, 3]')} {heads(f'{y}_k', k, '[0, 2, 3, 1]')} "
        f"{heads(f'{y}_v', v, '[0, 2, 1, 3]')} "
        f"{y}_s = MatMul({y}_q, {y}_k) {y}_t = Mul({y}_s, half) {y}_p = Softmax<axis = -1>({y}_t) "
        f"{y}_o = MatMul({y}_p, {y}_v) {y}_u = Transpose<perm = [0, 2, 1, 3]>({y}_o) {y} = Reshape({y}_u, join_heads)"
    )


def _self_attention(y: str, x: str, first: int) -> str:
    names = [f"{y}_x{index}" for index in range(3)]
    linears = [_linear(name, x, f"w{(first + index) % 3}", f"b{index}") for index, name in enumerate(names)]
    return " ".join([*linears, _attention(y, *names)])


def _layer_normalization(y: str, x: str, g: str, b: str) -> str:
    return (
        f"{y}_m = ReduceMean({x}, last) {y}_d = Sub({x}, {y}_m) {y}_s = Mul({y}_d, {y}_d) "
        f"{y}_v = ReduceMean({y}_s, last) {y}_e = Add({y}_v, tiny) {y}_r = Sqrt({y}_e) {y}_n = Div({y}_d, {y}_r) "
        f"{y}_g = Mul({y}_n, {g}) {y} = Add({y}_g, {b})"
    )


def _rms_normalization(y: str, x: str, g: str) -> str:
    return (
        f"{y}_s = Mul({x}, {x}) {y}_v = ReduceMean({y}_s, last) {y}_e = Add({y}_v, tiny) {y}_r = Sqrt({y}_e) "
        f"{y}_n = Div({x}, {y}_r) {y} = Mul({g}, {y}_n)"
    )


def _gelu(y: str, x: str) -> str:
    return (
        f"{y}_s = Div({x}, root) {y}_f = Erf({y}_s) {y}_a = Add({y}_f, one) "
        f"{y}_m = Mul({x}, {y}_a) {y} = Mul({y}_m, half)"
    )


def _convolution(y: str, x: str, k: str, g: str) -> str:
    return (
        f"{y}_t = Transpose<perm = [0, 2, 1]>({x}) {y}_c = Conv<pads = [1, 1]>({y}_t, {k}) "
        f"{y}_a = Mul({y}_c, {g}_column) {y}_r = Relu({y}_a) {y} = Transpose<perm = [0, 2, 1]>({y}_r)"
    )


def _joined_convolution(y: str, a: str, b: str, k: str) -> str:
    return (
        f"{y}_a = Transpose<perm = [0, 2, 1]>({a}) {y}_b = Transpose<perm = [0, 2, 1]>({b}) "
        f"{y}_j = Concat<axis = 2>({y}_a, {y}_b) {y}_c = Conv<strides = [2], pads = [1, 0]>({y}_j, {k}) "
        f"{y}_r = Relu({y}_c) {y} = Transpose<perm = [0, 2, 1]>({y}_r)"
    )


def _branches(y: str, a: str, b: str, w: str) -> str:
    return (
        f"{y}_m = ReduceMax<keepdims = 0>({a}) {y}_n = Less({y}_m, one) {y} = If({y}_n) "
        f"<then_branch = {y}_then () => ({y}_yes) {{ {y}_yes = MatMul({b}, {w}) }}, "
        f"else_branch = {y}_else () => ({y}_no) {{ {y}_no = Neg({b}) }}>"
    )


KINDS: dict[str, Callable[[str, list[str], str], str]] = {
    "linear": lambda y, x, w: _linear(y, x[0], f"w{w}", f"b{w}"),
    "linear without bias": lambda y, x, w: f"{y} = MatMul({x[0]}, w{w})",
    "transposed linear": lambda y, x, w: f"{y}_w = Transpose<perm = [1, 0]>(w{w}) {y} = MatMul({x[0]}, {y}_w)",
    "three linears and attention": lambda y, x, w: _self_attention(y, x[0], int(w)),
    "attention": lambda y, x, _: _attention(y, *x),
    "layer normalization": lambda y, x, w: _layer_normalization(y, x[0], f"g{w}", f"b{w}"),
    "LayerNormalization": lambda y, x, w: f"{y} = LayerNormalization({x[0]}, g{w}, b{w})",
    "RMS normalization": lambda y, x, w: _rms_normalization(y, x[0], f"g{w}"),
    "gelu": lambda y, x, _: _gelu(y, x[0]),
    "convolution": lambda y, x, w: _convolution(y, x[0], f"k{w}", f"g{w}"),
    "joined convolution": lambda y, x, w: _joined_convolution(y, x[0], x[1], f"k{w}"),
    "residual": lambda y, x, _: f"{y} = Add({x[0]}, {x[1]})",
    "gate": lambda y, x, _: f"{y}_s = Sigmoid({x[1]}) {y} = Mul({x[0]}, {y}_s)",
    "scale": lambda y, x, w: f"{y} = Mul({x[0]}, g{w})",
    "shift": lambda y, x, w: f"{y} = Sub({x[0]}, b{w})",
    "relu": lambda y, x, _: f"{y} = Relu({x[0]})",
    "hard swish": lambda y, x, _: (
        f"{y}_a = Add({x[0]}, three) {y}_c = Clip({y}_a, zero, six) {y}_m = Mul({x[0]}, {y}_c) {y} = Div({y}_m, six)"
    ),
    "views": lambda y, x, _: (
        f"{y}_r = Reshape({x[0]}, split_heads) {y}_t = Transpose<perm = [0, 1, 3, 2]>({y}_r) "
        f"{y}_u = Transpose<perm = [0, 1, 3, 2]>({y}_t) {y} = Reshape({y}_u, join_heads)"
    ),
    "identity": lambda y, x, _: f"{y} = Identity({x[0]})",
    "function": lambda y, x, _: f"{y} = own.SwishLike({x[0]})",
    "branches": lambda y, x, w: _branches(y, x[0], x[1], f"w{w}"),
}
"""Name of a pattern -> its text, of the name of its result, three values to read and the number of a weight."""


_DRAWN = (*KINDS, *("linear", "convolution", "three linears and attention") * 3)
"""Kinds to draw from: most of the work is in some of them."""


def choices(steps: int = 8) -> strategies.SearchStrategy[Choices]:
    """Draw a graph of up to this many steps."""
    number = strategies.integers(0, 2)
    step = strategies.builds(
        Step, strategies.sampled_from(_DRAWN), strategies.tuples(*[strategies.integers(0, steps)] * 3), number
    )
    some = strategies.frozensets(strategies.integers(0, steps), max_size=2)
    few = strategies.frozensets(number, max_size=1)
    return strategies.builds(
        Choices, strategies.lists(step, min_size=2, max_size=steps).map(tuple), some, strategies.just(frozenset()) | few
    )


def numbered(seed: int, steps: int = 8) -> Choices:
    """Return a graph that is the same for the same number, of the distribution of `choices` without its shrinking."""
    draw = Random(seed)

    def step() -> Step:
        first, second, third = (draw.randint(0, steps) for _ in range(3))
        return Step(draw.choice(_DRAWN), (first, second, third), draw.randint(0, 2))

    drawn = tuple(step() for _ in range(draw.randint(2, steps)))
    outputs = frozenset(draw.randint(0, steps) for _ in range(draw.randint(0, 2)))
    return Choices(drawn, outputs, frozenset(draw.sample(range(3), draw.randint(0, 1))))


def build(drawn: Choices) -> ir.Model:
    """Return the model; weights depend on their number only."""
    values, text = ["x"], []
    for index, step in enumerate(drawn.steps):
        sources = [values[source % len(values)] for source in step.sources]
        text.append(KINDS[step.kind](f"v{index}", sources, str(step.weight)))
        values.append(f"v{index}")
    outputs = dict.fromkeys([*(values[1:][index % (len(values) - 1)] for index in drawn.outputs), values[-1]])
    shape = f"float[n, {TOKENS}, {CHANNELS}]"
    arrays = _initializers()
    inputs = [f"{shape} x", *(f"float[{CHANNELS}, {CHANNELS}] w{number}" for number in sorted(drawn.overridable))]
    declared = ", ".join(f"{shape} {name}" for name in outputs)
    proto = onnx.parser.parse_model(
        f"{_HEADER}\nmain ({', '.join(inputs)}) => ({declared}) {{ {' '.join(text)} }}\n{_FUNCTION}"
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    """Return inputs for every graph."""
    random = np.random.default_rng(7)
    return [{"x": random.normal(size=(2, TOKENS, CHANNELS)).astype(np.float32)} for _ in range(count)]


def single_feeds() -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs of one item for every graph, large and small ones: a branch may depend on that."""
    random = np.random.default_rng(8)
    for index in range(64):
        x = random.normal(size=(1, TOKENS, CHANNELS)) * (1, 0.25, 2)[index % 3]
        yield {"x": x.astype(np.float32)}


def _initializers() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    scalars = {"zero": 0, "half": 0.5, "one": 1, "root": np.sqrt(2), "three": 3, "six": 6, "tiny": 1e-5}
    arrays = {name: np.array(value, np.float32) for name, value in scalars.items()}
    for number in range(3):
        arrays[f"w{number}"] = random.normal(size=(CHANNELS, CHANNELS)) / np.sqrt(CHANNELS)
        arrays[f"b{number}"] = random.normal(size=CHANNELS)
        arrays[f"g{number}"] = random.uniform(0.5, 2, CHANNELS)
        arrays[f"g{number}_column"] = arrays[f"g{number}"].reshape(CHANNELS, 1)
        arrays[f"k{number}"] = random.normal(size=(CHANNELS, CHANNELS, 3)) / np.sqrt(3 * CHANNELS)
    shapes = {"last": [-1], "split_heads": [0, 0, HEADS, -1], "join_heads": [0, 0, -1]}
    floats = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return floats | {name: np.array(array, np.int64) for name, array in shapes.items()}
