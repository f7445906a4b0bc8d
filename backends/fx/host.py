"""Arrays of a few numbers in Python: shapes and what follows from them, as ints and SymInts, never on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

Number: TypeAlias = "int | float | bool"


class Host(NamedTuple):
    """An array of numbers in Python; under torch.export and torch.compile they may be symbolic.

    Attributes:
        values: the numbers, row by row.
        shape: the sizes of the array.
        dtype: what they are when they become a tensor.
    """

    values: tuple[Number, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


Numbers: TypeAlias = Host | Sequence[int] | Sequence[float]
"""What a parameter of the table's `host` gets: an input as `Host`, an attribute as a sequence."""


def vector(values: Sequence[Number], dtype: torch.dtype = torch.int64) -> Host:
    """The array of one dimension."""
    return Host(tuple(values), (len(values),), dtype)


def from_tensor(tensor: torch.Tensor) -> Host:
    """The numbers of a tensor. Waits for the device: only where the data decide on a shape."""
    return Host(_numbers(tensor), tuple(tensor.shape), tensor.dtype)


def _numbers(tensor: torch.Tensor) -> tuple[Number, ...]:
    if torch.compiler.is_compiling():  # item by item: tolist is not known to torch.export on every path
        return tuple(element.item() for element in tensor.reshape(-1).unbind(0))
    return tuple(tensor.reshape(-1).tolist())


def device_of(like: object) -> torch.device | None:
    """The device of a tensor, or of the first of a sequence; None, which is the processor, of anything else."""
    if isinstance(like, torch.Tensor):
        return like.device
    return device_of(like[0]) if isinstance(like, (list, tuple)) and like else None


def to_tensor(host: Host, like: object) -> torch.Tensor:
    """The tensor of the numbers, filled on the device of another (None: the processor) without waiting for it."""
    device = device_of(like)
    if not host.values:
        return torch.empty(host.shape, dtype=host.dtype, device=device)
    filled = [torch.full((), value, dtype=host.dtype, device=device) for value in host.values]
    return torch.stack(filled).reshape(host.shape)


def ints(numbers: Numbers) -> list[int]:
    """The numbers of an input or an attribute that are integers."""
    return list(numbers.values if isinstance(numbers, Host) else numbers)  # type: ignore[arg-type]


def floats(numbers: Numbers) -> list[float]:
    """The numbers of an input or an attribute that are floating."""
    return list(numbers.values if isinstance(numbers, Host) else numbers)


def single(numbers: Host | Number) -> Number:
    """The only number of an array, or the attribute itself."""
    return numbers.values[0] if isinstance(numbers, Host) else numbers


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that these broadcast to, as numpy does."""
    rows = itertools.zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in rows)[::-1]


def positions(shape: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """For each element of the target shape, where it is in the values of an array that broadcasts to it."""
    padded = (1,) * (len(target) - len(shape)) + tuple(shape)
    steps = [0 if size == 1 else math.prod(padded[axis + 1 :]) for axis, size in enumerate(padded)]
    places = itertools.product(*(range(size) for size in target))
    return [sum(step * index for step, index in zip(steps, place, strict=True)) for place in places]


def rows(host: Host, axis: int) -> tuple[int, int, int]:
    """How many elements are before an axis, along it and behind it."""
    axis %= max(len(host.shape), 1)
    return math.prod(host.shape[:axis]), host.shape[axis], math.prod(host.shape[axis + 1 :])


def taken(host: Host, axis: int, chosen: Sequence[int]) -> Host:
    """The array with these positions along an axis."""
    axis %= len(host.shape)
    before, along, behind = rows(host, axis)
    values = [
        host.values[(outer * along + index % along) * behind + inner]
        for outer in range(before)
        for index in chosen
        for inner in range(behind)
    ]
    return host._replace(values=tuple(values), shape=(*host.shape[:axis], len(chosen), *host.shape[axis + 1 :]))


def shape_of(value: torch.Tensor | Host, *, start: int = 0, end: int | None = None) -> Host:
    """Shape: the sizes of a tensor, from one dimension to another."""
    return vector(tuple(value.shape)[start:end])


def size_of(value: torch.Tensor | Host) -> Host:
    """Size: how many elements a tensor has."""
    return Host((math.prod(value.shape),), (), torch.int64)
