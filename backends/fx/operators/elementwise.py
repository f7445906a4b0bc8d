"""Operators that compute each element from the elements at its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Host, Number, single
from qcompile.backends.fx.table import enter_torch, operator
from qcompile.backends.fx.types import WIDE_UNSIGNED

enter_torch(
    {
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "And": torch.logical_and,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "HardSwish": functional.hardswish,
        "IsNaN": torch.isnan,
        "Log": torch.log,
        "Mish": functional.mish,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Round": torch.round,
        "Sigmoid": torch.sigmoid,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softsign": functional.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
        "Where": torch.where,
        "Xor": torch.logical_xor,
    }
)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in a type that torch computes with."""
    return tensor.to(torch.int64) if tensor.dtype in WIDE_UNSIGNED else tensor


def computed(function: Callable[..., Tensor], *tensors: Tensor, **settings: Any) -> Tensor:
    """Apply a function of torch in the type of the first tensor, through int64 where torch does not compute in it."""
    return function(*map(wide, tensors), **settings).to(tensors[0].dtype)


def aligned(a: Tensor, b: Tensor, axis: int | None, broadcast: int | None) -> Tensor:
    """The second operand as opsets below 7 broadcast it: its first dimension at an axis of the first."""
    if not broadcast or axis is None:
        return b
    return in_front(b, a.dim() - axis % a.dim() - b.dim())


def in_front(values: Tensor, count: int) -> Tensor:
    """The values with so many axes of 1 behind theirs, so that they broadcast along the axes in front of those."""
    return values.reshape(*values.shape, *[1] * count)


def _binary(function: Callable[..., Tensor], name: str) -> None:
    @operator(name)
    def apply(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int | None = None) -> Tensor:
        return computed(function, a, aligned(a, b, axis, broadcast))

    apply.__name__ = apply.__qualname__ = name.lower()


def _compared(function: Callable[..., Tensor], name: str) -> None:
    @operator(name)
    def apply(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int | None = None) -> Tensor:
        return function(wide(a), wide(aligned(a, b, axis, broadcast)))

    apply.__name__ = apply.__qualname__ = name.lower()


_ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
}
for _name, _function in _ARITHMETIC.items():
    _binary(_function, _name)
for _name, _function in _COMPARISONS.items():
    _compared(_function, _name)


@operator("Div")
def div(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int | None = None) -> Tensor:
    """A / b; integers towards zero, as in C."""
    b = aligned(a, b, axis, broadcast)
    return torch.div(a, b) if a.is_floating_point() else computed(torch.div, a, b, rounding_mode="trunc")


@operator("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """What is left of a / b, with the sign of b; with that of a for fmod."""
    return computed(torch.fmod if fmod else torch.remainder, a, b)


@operator("Pow")
def power(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int | None = None) -> Tensor:
    """A ** b in the type of a."""
    b = aligned(a, b, axis, broadcast)
    if b.is_floating_point() and not a.is_floating_point():
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    return computed(torch.pow, a, b)


@operator("BitShift")
def bit_shift(a: Tensor, b: Tensor, *, direction: str) -> Tensor:
    """Bits moved to the left or to the right, zeros behind them."""
    return computed(torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift, a, b)


@operator("BitwiseNot")
def bitwise_not(x: Tensor) -> Tensor:
    """Every bit the other one."""
    return computed(torch.bitwise_not, x)


def _folded(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    return functools.reduce(functools.partial(computed, function), operands)


@operator("Min")
def least(*operands: Tensor) -> Tensor:
    """The least of several."""
    return _folded(torch.minimum, *operands)


@operator("Max")
def most(*operands: Tensor) -> Tensor:
    """The greatest of several."""
    return _folded(torch.maximum, *operands)


@operator("Sum")
def total(*operands: Tensor) -> Tensor:
    """The sum of several."""
    return _folded(torch.add, *operands)


@operator("Mean")
def mean(*operands: Tensor) -> Tensor:
    """The mean of several."""
    return total(*operands) / len(operands)


@operator("Abs")
def absolute(x: Tensor) -> Tensor:
    """Without the sign."""
    return computed(torch.abs, x)


@operator("Neg")
def negative(x: Tensor) -> Tensor:
    """With the other sign."""
    return computed(torch.neg, x)


@operator("Sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return computed(torch.sign, x)


@operator("Identity")
def identity(x: Any) -> Any:
    """The value itself."""
    return x


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether it is infinite, of the signs that are asked for."""
    x = x.to(torch.float32) if x.element_size() == 1 else x
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@operator("Clip", either=("min", "max"))
def clip(x: Tensor, min: Tensor | Host | float | None = None, max: Tensor | Host | float | None = None) -> Tensor:
    """Not below min, then not above max; in one step where both are numbers."""
    low, high = _bound(min), _bound(max)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # torch takes three times as long for two bounds that are tensors as for one after the other.
        made = wide(x) if low is None else wide(x).clamp(min=low)
        return (made if high is None else made.clamp(max=high)).to(x.dtype)
    return x if low is None and high is None else wide(x).clamp(low, high).to(x.dtype)


def _bound(given: Tensor | Host | float | None) -> Tensor | Number | None:
    if given is None:
        return None
    return wide(given) if isinstance(given, Tensor) else single(given)
