"""How many bits a number of the weights takes on average, with the scales and zero points that stand beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

QUANTIZED, ALL = "quantized", "all"
"""Of the weights that are integers, and of all weights together."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_SIGNED = frozenset({ir.DataType.INT4, ir.DataType.INT8})
_INTEGERS = _SIGNED | {ir.DataType.UINT4, ir.DataType.UINT8}


def bits_per_weight(before: ir.Model, after: ir.Model) -> Mapping[str, float]:
    """Return QUANTIZED and ALL -> bits for each number, of what a recipe made of a model; nothing where it has none.

    Integers count in as many bits as their values need, as the recipe asked for them (a runtime without such a type
    stores them in more), everything else in the bits of its type; of the main graph. A matrix that is no longer there,
    and integers of its shape, turned or not, are one weight; whatever else is new are scales, zero points, minimums and
    codebooks. Zero points that are all 0 are left out, as runtimes do, and so are constants of other types, such as
    shapes and biases in int32.

    Args:
        before: the float model; its data is not read.
        after: the same with some weights quantized.
    """
    old, new = _stored(before), _stored(after)
    gone = Counter(
        _shape(each) for name, each in old.items() if each.dtype in _FLOATS and _differs(each, new.get(name))
    )
    fresh = [each for name, each in new.items() if _differs(each, old.get(name))]
    kept = [each for name, each in new.items() if not _differs(each, old.get(name))]
    quantized, beside = list[ir.Value](), list[ir.Value]()
    for value in sorted(fresh, key=lambda each: each.dtype in _FLOATS):
        known = gone[_shape(value)] and (value.dtype in _FLOATS or len(_shape(value)) > 1)
        gone[_shape(value)] -= bool(known)
        (beside if not known else kept if value.dtype in _FLOATS else quantized).append(value)
    if not quantized:
        return {}
    numbers = sum(map(_size, quantized))
    bits = sum(_size(each) * _needed(each) for each in quantized) + sum(map(_bits, beside))
    every = numbers + sum(map(_size, kept))
    return {QUANTIZED: bits / numbers, ALL: (bits + sum(map(_bits, kept))) / every}


def _stored(model: ir.Model) -> dict[str, ir.Value]:
    """Return the constants of a model that are numbers of it, or say how to read them, and that something reads."""
    found = ((name, each) for name, each in model.graph.initializers.items() if each.uses())
    return {name: each for name, each in found if each.dtype in _FLOATS | _INTEGERS and each.const_value is not None}


def _differs(value: ir.Value, other: ir.Value | None) -> bool:
    return other is None or value.dtype != other.dtype or _shape(value) != _shape(other)


def _shape(value: ir.Value) -> tuple[int, ...]:
    """Return the lengths of the axes, the smallest first: a table and its transpose are one weight."""
    assert value.const_value is not None
    return tuple(sorted(value.const_value.shape.numpy()))


def _size(value: ir.Value) -> int:
    return math.prod(_shape(value))


def _bits(value: ir.Value) -> float:
    """Return the bits of what stands beside a weight, or in its place; none for zeros, which are no zero points."""
    assert value.dtype is not None
    assert value.const_value is not None
    if value.dtype in _INTEGERS and not value.const_value.numpy().any():
        return 0.0
    return _size(value) * float(value.dtype.bitwidth)


def _needed(value: ir.Value) -> int:
    """Return how many bits hold every number of a matrix of integers."""
    assert value.dtype is not None
    tensor = value.const_value
    assert tensor is not None
    if not tensor.size:
        return int(value.dtype.bitwidth)
    numbers = tensor.numpy()
    low, high = min(int(numbers.min()), 0), max(int(numbers.max()), 0)
    return max(high.bit_length(), (-low - 1).bit_length() if low else 0) + (value.dtype in _SIGNED)
