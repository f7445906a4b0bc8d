"""Weights with a scale for each group of inputs: what a solver is given, what it returns, and how it is multiplied out.

Every solver of these has the signature `solve(weight, scheme, seen, **settings) -> Grouped` and is defined for every
float32 weight [inputs, outputs]: NaN counts as 0, and an infinity as the largest finite magnitude of its output.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme

Array = npt.NDArray[Any]

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Scales are normal numbers of float32: runtimes take others for 0."""

_ELEMENTS = 2**17
"""Elements of a weight that are computed at a time: with fewer, threads wait for the interpreter."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What calibration saw of what a linear multiplies.

    Attributes:
        gram: mean of x xT, float32 [inputs, inputs]; None: not known.
        squares: mean of x^2, float32 [inputs], for where `gram` is not known; None: every input counts the same.
    """

    gram: Array | None = None
    squares: Array | None = None

    def energy(self, inputs: int) -> Array:
        """Mean square of each input over the largest, float32 [inputs]; ones where none is known, or all are zero."""
        diagonal = self.squares if self.gram is None else np.diagonal(self.gram)
        if diagonal is None or not np.isfinite(diagonal).all() or not (diagonal > SMALLEST_SCALE).any():
            return np.ones(inputs, np.float32)
        energy: Array = np.maximum(diagonal, 0).astype(np.float32)
        energy /= energy.max()  # their products with squares of a weight are to be numbers
        return energy

    def groups(self, inputs: int, scheme: GroupScheme) -> Array:
        """Return the energy as a weight in groups has it, float32 [groups, size, 1]; zeros fill the last group."""
        filled = np.zeros(scheme.groups(inputs) * scheme.size(inputs), np.float32)
        filled[:inputs] = self.energy(inputs)
        return filled.reshape(-1, scheme.size(inputs), 1)


NOTHING_SEEN = Evidence()


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """A weight in groups: (integers - zero_point) * scale.

    Attributes:
        integers: [inputs, outputs], int8 where the scheme is symmetric, else uint8.
        scale: float32 [groups, outputs], normal numbers, also negative ones.
        zero_point: uint8 [groups, outputs]; None where the scheme is symmetric.
        remark: what the solver could not do as asked, and did in its place; empty where there is nothing to say.
    """

    integers: Array
    scale: Array
    zero_point: Array | None = None
    remark: str = ""

    def columns(self, columns: slice) -> Grouped:
        """Return that of some outputs."""
        zero_point = None if self.zero_point is None else self.zero_point[:, columns]
        return Grouped(self.integers[:, columns], self.scale[:, columns], zero_point, self.remark)

    def weight(self, group_size: int) -> Array:
        """Return the weight that it stands for, float32 [inputs, outputs]; `group_size` is that of its scheme."""
        inputs, outputs = self.integers.shape
        size = max(inputs, 1) if group_size == -1 else group_size
        result = self.integers.astype(np.float32)
        for start in range(0, inputs, size):
            rows = slice(start, start + size)
            if self.zero_point is not None:
                result[rows] -= self.zero_point[start // size].astype(np.float32)
            result[rows] *= self.scale[start // size]
        return result.reshape(inputs, outputs)


def finite(weight: Array) -> Array:
    """Return the weight as float32 without NaN, which count as 0, and infinities: the largest magnitude of an output.

    Infinities of an output with nothing else count as 1. A weight without any of them is returned as it is. Numbers
    beyond a quarter of the largest float32 count as infinite.
    """
    limit = float(np.finfo(np.float32).max) / 4
    if not weight.size or float(np.maximum(-weight.min(), weight.max())) <= limit:  # false of NaN
        return weight.astype(np.float32, copy=False)
    usable = np.where(np.abs(weight) <= limit, weight, 0)
    largest = np.abs(usable).max(axis=0, initial=0.0)
    bound = np.where(largest > 0, largest, 1)
    return np.clip(np.where(np.isnan(weight), 0, weight), -bound, bound).astype(np.float32)


def usable_scale(scale: Array) -> Array:
    """Return scales as float32: 1 in the place of 0, and the smallest normal number in that of smaller ones."""
    tiny = np.abs(scale) < SMALLEST_SCALE
    if not tiny.any():
        return scale.astype(np.float32, copy=False)
    return np.where(scale == 0, 1, np.where(tiny, np.copysign(SMALLEST_SCALE, scale), scale)).astype(np.float32)


def in_blocks(weight: Array, scheme: GroupScheme, solve: Callable[[Array, slice], Grouped]) -> Grouped:
    """Return what `solve` makes of blocks of a weight, on all cores: what a core's own cache holds at a time.

    Args:
        weight: float32 [inputs, outputs].
        scheme: how it is stored.
        solve: from a block [groups, size, columns], which is the caller's to change, and the slice of its inputs to
            its integers [groups, size, columns], scale and zero point [groups, columns]. Inputs that fill the last
            group are zeros.
    """
    inputs, outputs = weight.shape
    size, groups = scheme.size(inputs), scheme.groups(inputs)
    integers = np.empty((inputs, outputs), np.int8 if scheme.sym else np.uint8)
    scale = np.empty((groups, outputs), np.float32)
    zero_point = None if scheme.sym else np.empty((groups, outputs), np.uint8)
    width = min(outputs, max(16, _ELEMENTS // size)) or 1
    together = max(1, _ELEMENTS // (size * width))

    def one(place: tuple[int, int]) -> None:
        first, column = place
        last, columns = min(first + together, groups), slice(column, column + width)
        rows = slice(first * size, min(last * size, inputs))
        block = np.zeros(((last - first) * size, len(range(outputs)[columns])), np.float32)
        block[: rows.stop - rows.start] = finite(weight[rows, columns])
        found = solve(block.reshape(last - first, size, -1), rows)
        integers[rows, columns] = found.integers.reshape(block.shape)[: rows.stop - rows.start]
        scale[first:last, columns] = found.scale
        if zero_point is not None:
            zero_point[first:last, columns] = found.zero_point  # type: ignore[assignment]

    places = [(first, column) for first in range(0, groups, together) for column in range(0, outputs, width)]
    on_all_cores(one, places)
    return Grouped(integers, scale, zero_point)


def column_blocks(outputs: int, most: int) -> list[slice]:
    """Return slices of at most so many outputs each, and of as many as there are cores."""
    width = max(1, min(most, -(-outputs // _cores())))
    return [slice(start, min(start + width, outputs)) for start in range(0, outputs, width)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_all_cores(work: Callable[[Any], None], items: list[Any]) -> None:
    """Do the work on every item; numpy lets other threads run while it computes."""
    cores = _cores()
    if cores == 1 or len(items) == 1:
        for item in items:
            work(item)
        return
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(work, items):
            pass
