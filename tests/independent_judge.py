"""Does an artifact compute what its quantized graph means? Judged by the onnx package alone, where there is no doubt.

`verify_artifact` compares with qcompile's own reference, allows two quantization steps because of ties, and looks at
values inside of an artifact that was changed to show them. This judge shares none of that: it runs the artifact as it
is, against the operators of onnx.reference, on inputs that bring no value near a tie. There every sound evaluation
rounds every quantized value to the same integer, so that outputs differ by the rounding of float32 alone, and no step
has to be allowed.

How near is near is measured, for each input and value: all floats of the graph and of the input are changed by up to
UNIT of themselves, at random, and the graph is evaluated again. What float32 rounds on the way is a change of that kind
(backward errors: Higham, Accuracy and Stability of Numerical Algorithms, 1.5). UNIT stands for 16 roundings, and
ALLOWED times its effect for the sums and the polynomials of a kernel. An input is used when every value is further from
a tie than that, and outputs have to agree to that. Whether it is used does not depend on the artifact.

Not for operators that onnx.reference is wrong in (measured, onnx 1.23: MaxPool of stride 1, LSTM with lengths of
sequences, ConvTranspose in groups with a bias), and not for those that jump where this looks for no tie: `judge`
refuses all but those that it lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx.numpy_helper
from onnx.reference import ReferenceEvaluator

UNIT = 2.0**-20
"""Relative change of every float of the graph and of the input: 16 roundings of float32."""

ALLOWED = 4.0
"""How many times the effect of UNIT a runtime may be off."""

_STEPS = 2.0**8
"""Largest number of quantization steps in a value of 8 bits: what UNIT is a part of where it has no effect."""

_NAMES = """
    Abs Add Attention Clip Concat Conv DequantizeLinear Div Erf Exp Gelu HardSigmoid HardSwish Identity If
    LayerNormalization MatMul Max Min Mul Neg Pow RMSNormalization ReduceMax ReduceMean ReduceMin Relu Reshape Sigmoid
    Slice Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze
"""
_CONTINUOUS = frozenset(_NAMES.split())
_PER_TOKEN = "QuantizeDequantizePerToken"

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one artifact.

    Attributes:
        compared: number of inputs that it was judged on.
        output: the output that is furthest off.
        off: how far, in parts of what is allowed; above 1 it is wrong. Infinite for another shape, type or NaN.
    """

    compared: int
    output: str
    off: float

    @property
    def wrong(self) -> bool:
        """True when the artifact computes something else."""
        return self.off > 1


def judge(
    portable: onnx.ModelProto, feeds: Iterable[Arrays], run: Callable[[Arrays], Arrays], *, enough: int = 3
) -> Verdict:
    """Compare on the first inputs that bring no value near a tie.

    Args:
        portable: the quantized graph before a backend lowered it, with its weights.
        feeds: inputs.
        run: runs the artifact.
        enough: number of inputs to compare on.

    Raises:
        ValueError: the graph has an operator that this judge does not know.
    """
    graph = _Graph.of(portable)
    compared, worst, largest = 0, "", 0.0
    for feed in feeds:
        expected, clear = graph.evaluate(feed)
        if not clear:
            continue
        actual = run(feed)
        for name, (array, allowed) in expected.items():
            off = _off(array, allowed, actual[name])
            worst, largest = (name, off) if off >= largest else (worst, largest)
        compared += 1
        if compared == enough:
            break
    return Verdict(compared, worst, largest)


def with_float_linears(portable: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which linears read what a quantizer per token reads: what it means to OpenVINO.

    It quantizes tokens inside of its linears, in groups of 16 channels and more, and says of narrower ones that their
    activations stay float.
    """
    model = onnx.ModelProto()
    model.CopyFrom(portable)
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == _PER_TOKEN}
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in dequantized:
            node.input[0] = sources.get(node.input[0], node.input[0])
    return model


def _off(expected: np.ndarray, allowed: float, actual: np.ndarray) -> float:
    if expected.shape != actual.shape or expected.dtype != actual.dtype or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - actual).max(initial=0)) / allowed


@dataclasses.dataclass(frozen=True)
class _Decision:
    """Numbers of which an infinitesimal change may make a jump: how far from it they are, and in what unit."""

    values: np.ndarray
    distance: np.ndarray
    size: float


@dataclasses.dataclass(frozen=True)
class _Graph:
    """A graph whose constants are inputs, so that they can be changed."""

    evaluator: ReferenceEvaluator
    constants: Arrays
    jumps: tuple[onnx.NodeProto, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, portable: onnx.ModelProto) -> _Graph:
        model = onnx.ModelProto()
        model.CopyFrom(portable)
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        del model.graph.initializer[:]
        jumps = [node for node in _nodes(model.graph) if node.op_type not in _CONTINUOUS]
        unknown = {node.op_type for node in jumps} - _JUMPS.keys()
        inside = {node.op_type for node in jumps} - {node.op_type for node in model.graph.node}
        if unknown or inside:
            raise ValueError(f"no judgement of {', '.join(sorted(unknown | inside))}")
        names = tuple(value.name for value in model.graph.output)
        return cls(ReferenceEvaluator(model), constants, tuple(jumps), names)

    def evaluate(self, feed: Arrays) -> tuple[dict[str, tuple[np.ndarray, float]], bool]:
        """Return each output with how far from it is allowed, and whether no tie is near."""
        exact = self._run(self.constants, feed)
        decisions = self._decisions(exact)
        if any((each.distance <= ALLOWED * UNIT * each.size).any() for each in decisions):
            return {}, False  # saves two evaluations
        moved = [UNIT * each.size for each in decisions]
        allowed = {name: UNIT * float(np.abs(exact[name]).max(initial=0)) for name in self.outputs}
        for seed in range(2):
            random = np.random.default_rng(seed)
            other = self._run(_changed(self.constants, random), _changed(feed, random))
            for index, (before, after) in enumerate(zip(decisions, self._decisions(other), strict=True)):
                moved[index] = max(moved[index], float(np.abs(before.values - after.values).max(initial=0)))
            for name in self.outputs:
                change = np.abs(exact[name].astype(np.float64) - other[name]).max(initial=0)
                allowed[name] = max(allowed[name], float(change))
        clear = all((each.distance > ALLOWED * by).all() for each, by in zip(decisions, moved, strict=True))
        smallest = float(np.finfo(np.float32).tiny)
        return {name: (exact[name], max(ALLOWED * allowed[name], smallest)) for name in self.outputs}, clear

    def _run(self, constants: Arrays, feed: Arrays) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = self.evaluator.run(None, {**constants, **feed}, intermediate=True)
        return {**constants, **feed, **found}

    def _decisions(self, values: Arrays) -> list[_Decision]:
        return [_JUMPS[node.op_type](*(values[name] for name in node.input)) for node in self.jumps]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _changed(arrays: Arrays, random: np.random.Generator) -> dict[str, np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        if array.dtype != np.float32:
            return array
        return np.asarray(array * (1 + UNIT * random.uniform(-1, 1, array.shape)), np.float32)

    return {name: change(array) for name, array in arrays.items()}


def _static(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> _Decision:
    """Ties of QuantizeLinear with one scale; beyond the integers of its type there are none."""
    if scale.size != 1:
        raise ValueError("no judgement of QuantizeLinear with a scale for each channel")
    steps = x.astype(np.float64) / float(scale.item())
    limits, shifted = np.iinfo(zero_point.dtype), steps + float(zero_point.item())
    saturated = (shifted < limits.min) | (shifted > limits.max)
    return _Decision(np.clip(steps, -_STEPS, _STEPS), np.where(saturated, np.inf, _from_tie(steps)), _STEPS)


def _dynamic(x: np.ndarray) -> _Decision:
    """Ties of DynamicQuantizeLinear: of its numbers, and of its zero point."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    steps = np.append(x.astype(np.float64).ravel(), -low) / ((high - low) / 255)
    return _Decision(steps, _from_tie(steps), _STEPS)


def _per_token(x: np.ndarray) -> _Decision:
    """Ties of the function for one scale per token."""
    scale = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    steps = x / np.where(scale == 0, 1, scale)
    return _Decision(steps, _from_tie(steps), _STEPS)


def _less(a: np.ndarray, b: np.ndarray) -> _Decision:
    difference = a.astype(np.float64) - b
    return _Decision(difference, np.abs(difference), float(max(np.abs(a).max(), np.abs(b).max())))


def _from_tie(steps: np.ndarray) -> np.ndarray:
    return np.abs(steps - np.floor(steps) - 0.5)


_JUMPS: dict[str, Callable[..., _Decision]] = {
    "DynamicQuantizeLinear": _dynamic,
    "Less": _less,
    "QuantizeLinear": _static,
    _PER_TOKEN: _per_token,
}
