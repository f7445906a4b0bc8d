"""Operators of ONNX on shapes and what is computed from them: `Host` in, `Host` out."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qcompile.backends.fx.host import (
    Host,
    Number,
    Numbers,
    broadcast_shape,
    ints,
    positions,
    rows,
    taken,
)
from qcompile.backends.fx.table import on_host
from qcompile.backends.fx.types import torch_type


def _divided(a: Any, b: Any) -> Any:
    """A / b; integers towards zero. Sizes are not negative, so that // does it for them, symbolic or not."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return -(-a // b) if isinstance(a, int) and a < 0 else a // b


def _least(a: Any, b: Any) -> Any:
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


def _most(a: Any, b: Any) -> Any:
    return torch.sym_max(a, b)  # type: ignore[no-untyped-call]


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _divided,
    "Mod": operator.mod,
    "Min": _least,
    "Max": _most,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": operator.and_,
    "Or": operator.or_,
}
_REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ReduceProd": operator.mul,
    "ReduceSum": operator.add,
    "ReduceMin": _least,
    "ReduceMax": _most,
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": operator.neg,
    "Abs": abs,
    "Not": operator.not_,
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Identity": operator.pos,
}


def _elementwise(function: Callable[..., Any], dtype: torch.dtype | None, *operands: Host) -> Host:
    shape = broadcast_shape(*(operand.shape for operand in operands))
    spread = [[operand.values[place] for place in positions(operand.shape, shape)] for operand in operands]
    return Host(tuple(map(function, *spread)), shape, dtype or operands[-1].dtype)


def _enter_binary(name: str, function: Callable[[Any, Any], Any], dtype: torch.dtype | None) -> None:
    @on_host(name)
    def apply(a: Host, b: Host, **_: object) -> Host:  # fmod of Mod: sizes have no sign
        return _elementwise(function, dtype, a, b)

    apply.__name__ = apply.__qualname__ = f"host_{name.lower()}"


def _enter_unary(name: str, function: Callable[[Any], Any]) -> None:
    @on_host(name)
    def apply(x: Host) -> Host:
        made = tuple(function(value) for value in x.values)
        return x._replace(values=tuple(_floating(value) for value in made) if x.dtype.is_floating_point else made)

    apply.__name__ = apply.__qualname__ = f"host_{name.lower()}"


for _name, _function in _BINARY.items():
    _enter_binary(_name, _function, None)
for _name, _function in _COMPARISONS.items():
    _enter_binary(_name, _function, torch.bool)
for _name, _alone in _UNARY.items():
    _enter_unary(_name, _alone)


@on_host("Where")
def where(condition: Host, x: Host, y: Host) -> Host:
    """X where the condition holds, y elsewhere."""
    return _elementwise(lambda chosen, a, b: a if chosen else b, None, condition, x, y)


@on_host("Cast")
def cast(x: Host, *, to: int, saturate: int = 1, round_mode: str = "up") -> Host:  # noqa: ARG001 - for float8 alone
    """The numbers in another type."""
    return _converted(x, torch_type(to))


def _converted(x: Host, dtype: torch.dtype) -> Host:
    kind: Callable[[Any], Number]
    if dtype is torch.bool:
        kind = bool
    elif dtype.is_floating_point:
        kind = _floating
    else:
        kind = _integer if x.dtype.is_floating_point else operator.pos
    return Host(tuple(map(kind, x.values)), x.shape, dtype)


@on_host("CastLike")
def cast_like(x: Host, target: Host, *, saturate: int = 1, round_mode: str = "up") -> Host:  # noqa: ARG001 - as above
    """The numbers in the type of others."""
    return _converted(x, target.dtype)


def _floating(number: Any) -> Any:
    return torch.sym_float(number)  # type: ignore[no-untyped-call]


def _integer(number: Any) -> Any:
    return torch.sym_int(number)  # type: ignore[no-untyped-call]


@on_host("ConstantOfShape", symbolic=0)
def constant_of_shape(shape: Host, *, value: Host | None = None) -> Host:
    """One number everywhere."""
    sizes = tuple(ints(shape))
    filling = value or Host((0.0,), (1,), torch.float32)
    return Host(filling.values * math.prod(sizes), sizes, filling.dtype)


@on_host("Expand", symbolic=1)
def expand(x: Host, shape: Host) -> Host:
    """Broadcast to a shape, in both directions."""
    target = broadcast_shape(x.shape, tuple(ints(shape)))
    return x._replace(values=tuple(x.values[place] for place in positions(x.shape, target)), shape=target)


@on_host("Reshape", symbolic=1)
def reshape(x: Host, shape: Numbers, *, allowzero: int = 0) -> Host:  # noqa: ARG001 - no array of ours is empty
    """Another shape; 0 keeps a size, -1 is what is left."""
    sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(ints(shape))]
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(x.values) // -math.prod(sizes)
    return x._replace(shape=tuple(sizes))


@on_host("Unsqueeze", symbolic=1)
def unsqueeze(x: Host, axes: Numbers) -> Host:
    """New axes of size 1."""
    chosen = ints(axes)
    rank = len(x.shape) + len(chosen)
    new = {axis % rank for axis in chosen}
    old = iter(x.shape)
    return x._replace(shape=tuple(1 if axis in new else next(old) for axis in range(rank)))


@on_host("Squeeze", symbolic=1)
def squeeze(x: Host, axes: Numbers | None = None) -> Host:
    """Without these axes, or all of size 1."""
    gone = {axis for axis, size in enumerate(x.shape) if size == 1}
    if axes is not None:
        gone = {axis % len(x.shape) for axis in ints(axes)}
    return x._replace(shape=tuple(size for axis, size in enumerate(x.shape) if axis not in gone))


@on_host("Flatten")
def flatten(x: Host, *, axis: int = 1) -> Host:
    """Two axes: what is before an axis and the rest."""
    before = math.prod(x.shape[:axis])
    return x._replace(shape=(before, len(x.values) // before))


@on_host("Gather", symbolic=1)
def gather(x: Host, index: Host, *, axis: int = 0) -> Host:
    """Entries along an axis."""
    chosen = taken(x, axis, ints(index))
    axis %= len(x.shape)
    return chosen._replace(shape=(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@on_host("Slice", symbolic=1)
def slice_(
    x: Host,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Host:
    """A part of some axes."""
    first, last = ints(starts), ints(ends)
    along = list(range(len(first))) if axes is None else ints(axes)
    strides = [1] * len(first) if steps is None else ints(steps)
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        x = taken(x, axis, _places(x.shape[axis], start, end, step))
    return x


def _places(size: int, start: int, end: int, step: int) -> range:
    """Positions from start to end as ONNX counts them: negative ones from behind, those outside moved to the edge."""
    if step < 0 and end < -size:
        end = -size - 1
    return range(*slice(start, None if step < 0 and end == -size - 1 else end, step).indices(size))


@on_host("Concat")
def concat(*parts: Host, axis: int) -> Host:
    """Arrays one behind the other."""
    axis %= len(parts[0].shape)
    before = rows(parts[0], axis)[0]
    widths = [rows(part, axis)[1] * rows(part, axis)[2] for part in parts]
    values = [
        value
        for outer in range(before)
        for part, width in zip(parts, widths, strict=True)
        for value in part.values[outer * width : (outer + 1) * width]
    ]
    size = sum(part.shape[axis] for part in parts)
    return parts[0]._replace(values=tuple(values), shape=(*parts[0].shape[:axis], size, *parts[0].shape[axis + 1 :]))


@on_host("Split", symbolic=1)
def split(x: Host, split: Numbers | None = None, *, axis: int = 0, num_outputs: int = 0, outputs: int) -> list[Host]:
    """Parts of an axis, of these sizes or of one."""
    size = x.shape[axis]
    if split is not None:
        sizes = ints(split)
    else:
        width = -(-size // (num_outputs or outputs))
        sizes = [min(width, size - start) for start in range(0, size, width)]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [taken(x, axis, range(end - width, end)) for end, width in zip(ends, sizes, strict=True)]


@on_host("Transpose")
def transpose(x: Host, *, perm: Sequence[int] | None = None) -> Host:
    """Axes in another order."""
    order = list(perm) if perm is not None else list(range(len(x.shape)))[::-1]
    shape = tuple(x.shape[axis] for axis in order)
    steps = [math.prod(x.shape[axis + 1 :]) for axis in order]
    places = itertools.product(*(range(size) for size in shape))
    found = [sum(step * index for step, index in zip(steps, place, strict=True)) for place in places]
    return Host(tuple(x.values[place] for place in found), shape, x.dtype)


def _enter_reduction(name: str, function: Callable[[Any, Any], Any]) -> None:
    @on_host(name, symbolic=1)
    def apply(x: Host, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
        chosen = [] if axes is None else sorted({axis % len(x.shape) for axis in ints(axes)}, reverse=True)
        if not chosen and noop_with_empty_axes:
            return x
        for axis in chosen or range(len(x.shape))[::-1]:
            parts = [taken(x, axis, [place]).values for place in range(x.shape[axis])]
            values = tuple(functools.reduce(function, several) for several in zip(*parts, strict=True))
            x = x._replace(values=values, shape=(*x.shape[:axis], *((1,) if keepdims else ()), *x.shape[axis + 1 :]))
        return x

    apply.__name__ = apply.__qualname__ = f"host_{name.lower()}"


for _name, _function in _REDUCTIONS.items():
    _enter_reduction(_name, _function)


@on_host("Pow")
def power(base: Host, exponent: Host) -> Host:
    """Base ** exponent."""
    return _elementwise(operator.pow, base.dtype, base, exponent)


@on_host("Clip")
def clip(x: Host, min: Host | None = None, max: Host | None = None) -> Host:
    """Not below min, then not above max."""
    low = x if min is None else _elementwise(_most, x.dtype, x, min)
    return low if max is None else _elementwise(_least, x.dtype, low, max)
