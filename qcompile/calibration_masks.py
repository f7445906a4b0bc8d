"""Which graph inputs mark padding, found by dataflow and never by name.

A padding mask takes two values. Both are sent through the operators that turn it into the mask of an attention:
casts, comparisons, `(1 - mask) * -inf`, broadcasting, the sum with a causal mask. What arrives at a Softmax or at the
mask of an Attention operator says whether the input is a mask at all, and which of its two values means padding.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile.graph import constant, dims_are_known, is_standard

Levels = tuple[float, float]
"""What a value holds where the input is 1, and where it is 0."""


@dataclasses.dataclass(frozen=True)
class PaddingMask:
    """A graph input [batch, sequence] that says which positions hold data.

    Attributes:
        name: name of the graph input.
        valid: the element, 0 or 1, that marks a position that is not padding.
    """

    name: str
    valid: int = 1


_MOVES = frozenset(
    [
        "Expand",
        "Flatten",
        "Gather",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)

# Operator -> its arithmetic on two numbers, and what stands in for an operand that is not known: the element that
# lets the other operand through (scores that a mask is added to, a causal mask), or None where there is none.
_BINARY: dict[str, tuple[Callable[[float, float], float], float | None]] = {
    "Add": (operator.add, 0.0),
    "Sub": (operator.sub, 0.0),
    "Mul": (operator.mul, 1.0),
    "Div": (lambda a, b: a / b if b else math.nan, 1.0),
    "And": (lambda a, b: float(bool(a) and bool(b)), 1.0),
    "Or": (lambda a, b: float(bool(a) or bool(b)), 0.0),
    "Max": (max, -math.inf),
    "Min": (min, math.inf),
    "Equal": (lambda a, b: float(a == b), None),
    "Less": (lambda a, b: float(a < b), None),
    "LessOrEqual": (lambda a, b: float(a <= b), None),
    "Greater": (lambda a, b: float(a > b), None),
    "GreaterOrEqual": (lambda a, b: float(a >= b), None),
}
_UNARY: dict[str, Callable[[float], float]] = {"Not": lambda a: float(not a), "Neg": operator.neg}
_LARGEST_FILL = 2**16


def padding_masks(model: ir.Model) -> tuple[PaddingMask, ...]:
    """Return the graph inputs that mask padding in an attention of the main graph, should they hold only 0 and 1.

    An input of rank 2 with two different dims qualifies when it reaches the mask of an Attention, or a Softmax, through
    elementwise operators and operators that move elements. Ids that are looked up in an embedding do not get there,
    nor does anything that only lends its shape.
    """
    found = ((value, _valid_level(model.graph, value)) for value in model.graph.inputs if _may_mask(value))
    return tuple(PaddingMask(str(value.name), level) for value, level in found if level is not None)


def _may_mask(value: ir.Value) -> bool:
    if value.shape is None or len(value.shape) != 2:
        return False
    batch, sequence = value.shape
    return batch != sequence or not dims_are_known([batch])


def _valid_level(graph: ir.Graph, mask: ir.Value) -> int | None:
    known: dict[ir.Value, Levels] = {mask: (1.0, 0.0)}
    for node in graph:
        if not is_standard(node, node.op_type):
            continue
        at_one, at_zero = _arriving(node, known)
        if at_one != at_zero and not math.isnan(at_one + at_zero):
            return 1 if at_one > at_zero else 0
        levels = _through(node, [_levels(value, known) for value in node.inputs])
        if levels is not None:
            known[node.outputs[0]] = levels
    return None


def _arriving(node: ir.Node, known: dict[ir.Value, Levels]) -> Levels:
    index = {"Softmax": 0, "Attention": 3}.get(node.op_type)
    value = node.inputs[index] if index is not None and index < len(node.inputs) else None
    return (0.0, 0.0) if value is None else known.get(value, (0.0, 0.0))


def _levels(value: ir.Value | None, known: dict[ir.Value, Levels]) -> Levels | None:
    if value in known:
        return known[value]
    tensor = constant(value)
    if tensor is None or not 0 < tensor.size <= _LARGEST_FILL or tensor.dtype == ir.DataType.STRING:
        return None
    array = tensor.numpy()
    first = float(array.flat[0])
    return (first, first) if bool(np.all(array == array.flat[0])) else None


def _through(node: ir.Node, operands: list[Levels | None]) -> Levels | None:
    if node.op_type in _BINARY and len(operands) == 2:
        return _binary(*_BINARY[node.op_type], *operands)
    first = operands[0] if operands else None
    if node.op_type == "Where":
        return _where(*operands)
    if first is None:
        return None
    if node.op_type in _MOVES:
        return first
    if node.op_type in _UNARY:
        return _UNARY[node.op_type](first[0]), _UNARY[node.op_type](first[1])
    if node.op_type == "Cast":
        to_bool = node.attributes["to"].as_int() == ir.DataType.BOOL
        return (float(bool(first[0])), float(bool(first[1]))) if to_bool else first
    return None


def _binary(
    function: Callable[[float, float], float], neutral: float | None, left: Levels | None, right: Levels | None
) -> Levels | None:
    if (left is None and right is None) or (neutral is None and (left is None or right is None)):
        return None
    stand_in = (neutral or 0.0, neutral or 0.0)
    (left_one, left_zero), (right_one, right_zero) = left or stand_in, right or stand_in
    return function(left_one, right_one), function(left_zero, right_zero)


def _where(condition: Levels | None, chosen: Levels | None, other: Levels | None) -> Levels | None:
    if condition is None:
        return chosen or other
    yes, no = chosen or (0.0, 0.0), other or (0.0, 0.0)
    return yes[0] if condition[0] else no[0], yes[1] if condition[1] else no[1]


Dims = list["int | ir.SymbolicDim"]


def position_dims(value: ir.Value, axis: int) -> Dims | None:
    """Return the dims of the value without its channel axis, or None when its rank is unknown."""
    if value.shape is None:
        return None
    dims = list(value.shape)
    del dims[axis]
    return dims


def positions_key(value: ir.Value, axis: int) -> object:
    """Return a key that is equal for values that surely have the same positions in the same order."""
    dims = position_dims(value, axis)
    if dims is None or not dims_are_known(dims):
        return value.name
    return tuple(str(dim) for dim in dims)


def mask_axes(dims: Dims, mask: ir.Value) -> tuple[int, int] | None:
    """Return where the two dims of the mask are among the position dims; None when that is unknown or ambiguous.

    Numbers tell less than names: a mask of fixed dims fits values that have these two dims in front only.
    """
    if mask.shape is None or not dims_are_known(mask.shape):
        return None
    batch, sequence = mask.shape
    if dims.count(batch) != 1 or dims.count(sequence) != 1:
        return None
    first, second = dims.index(batch), dims.index(sequence)
    fixed = isinstance(batch, int) or isinstance(sequence, int)
    return None if fixed and (first, second) != (0, 1) else (first, second)
