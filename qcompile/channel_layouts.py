"""Layouts: which factor multiplies each element of a value, and how a layout follows reshapes, slices and broadcasts.

Arrays only; the operators that use them are in `channel_rules.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

UNSCALED = -1

Dim = int | str | None
Shape = tuple[Dim, ...]


class Blocked(Exception):
    """A scale cannot go this way; the message says why. Never leaves `channel_scales.solve`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A value V is replaced by V * factor[ids] ** power.

    Attributes:
        ids: int array with the rank of V; UNSCALED where nothing is multiplied. Its length along an axis is 1 (all
            elements alike), the size of V, or a period that divides it (batch * heads has the period heads).
        power: exponent of the factors; 1/2 above a square.
    """

    ids: np.ndarray
    power: float = 1.0


class Ties:
    """Pairs of channels that must have the same factor."""

    def __init__(self) -> None:
        self.pairs: set[tuple[int, int]] = set()

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Tie the channels of two arrays of one shape, element by element."""
        differ = (left != right) & (left != UNSCALED) & (right != UNSCALED)
        if differ.any():
            self.pairs.update(map(tuple, np.unique(np.stack([left[differ], right[differ]], axis=1), axis=0).tolist()))


def with_rank(ids: np.ndarray, rank: int) -> np.ndarray:
    """Add or drop leading axes of length 1; raises Blocked when a leading axis is longer."""
    if ids.ndim < rank:
        return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
    if any(length > 1 for length in ids.shape[: ids.ndim - rank]):
        raise Blocked(f"a scale of shape {list(ids.shape)} does not fit a tensor of rank {rank}")
    return ids.reshape(ids.shape[ids.ndim - rank :])


def merge(left: np.ndarray, right: np.ndarray, ties: Ties) -> np.ndarray:
    """Return the ids that both layouts ask for; channels that meet in one element are tied."""
    rank = max(left.ndim, right.ndim)
    left, right = with_rank(left, rank), with_rank(right, rank)
    shape = [math.lcm(a, b) for a, b in zip(left.shape, right.shape, strict=True)]
    left, right = _tile(left, shape), _tile(right, shape)
    ties.add(left, right)
    return np.where(left == UNSCALED, right, left)


def _tile(ids: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.tile(ids, [full // length for full, length in zip(shape, ids.shape, strict=True)])


def collapse(ids: np.ndarray, axis: int) -> np.ndarray:
    """Shrink an axis to length 1, where one element of a tensor is broadcast to all of them.

    Keeps the first channel that is asked for; what it is tied to shows when the layout is broadcast again.
    """
    return np.take_along_axis(ids, np.argmax(ids != UNSCALED, axis=axis, keepdims=True), axis)


def narrow(ids: np.ndarray, shape: Shape) -> np.ndarray:
    """Bring the ids of a broadcast result to the shape of one operand (aligned at the last axis)."""
    for axis in range(ids.ndim - len(shape)):
        ids = collapse(ids, axis)
    ids = with_rank(ids, len(shape))
    for axis, dim in enumerate(shape):
        if dim == 1:
            ids = collapse(ids, axis)
    return ids


def full_axis(ids: np.ndarray, axis: int, dim: Dim) -> np.ndarray:
    """Write out every element of an axis; raises Blocked when its size is not known."""
    if not isinstance(dim, int):
        raise Blocked("the size of a scaled axis is not known")
    shape = list(ids.shape)
    shape[axis] = dim
    return _tile(ids, shape)


def scatter(ids: np.ndarray, axis: int, dim: Dim, picked: np.ndarray) -> np.ndarray:
    """Ids of the tensor that `picked` elements of an axis were taken from; nothing is asked of the others."""
    if len(np.unique(picked)) != picked.size:
        raise Blocked("a Gather reads one channel twice")
    ids = full_axis(ids, axis, picked.size)
    whole = np.full_like(full_axis(ids[(slice(None),) * axis + (slice(0, 1),)], axis, dim), UNSCALED)
    whole[(slice(None),) * axis + (picked,)] = ids
    return whole


def concrete(ids: np.ndarray, shape: Shape) -> np.ndarray:
    """Write out every axis that is not uniform, so that numpy can broadcast the ids against a tensor."""
    ids = with_rank(ids, len(shape))
    for axis, dim in enumerate(shape):
        if ids.shape[axis] > 1:
            ids = full_axis(ids, axis, dim)
    return ids


def reshape(ids: np.ndarray, source: Shape, target: Shape) -> np.ndarray:
    """Ids of a tensor of shape `source` after a reshape to `target`; sizes may be symbolic.

    Equal sizes at both ends are matched one to one. What is left is followed when only its innermost part varies:
    then the flat ids repeat with a known period, which is dealt out to the new axes from the last one.
    """
    kept = [axis for axis, dim in enumerate(source) if dim != 1]
    before = [source[axis] for axis in kept]
    ids = ids.reshape([ids.shape[axis] for axis in kept])
    after = [dim for dim in target if dim != 1]
    before, after = _with_one_name(before, after)
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    middle = slice(head, len(before) - tail)
    flat_shape, period = _period(ids.shape[middle], before[middle])
    flat = np.broadcast_to(ids, ids.shape[:head] + flat_shape + ids.shape[middle.stop :])
    dealt = _deal(period, after[head : len(after) - tail])
    lengths = [*ids.shape[:head], *dealt, *ids.shape[middle.stop :]]
    flat = flat.reshape(lengths)
    placed = iter(lengths)
    return flat.reshape([1 if dim == 1 else next(placed) for dim in target])


def _with_one_name(before: list[Dim], after: list[Dim]) -> tuple[list[Dim], list[Dim]]:
    """Give the only unknown size on each side one name when the known ones show that they are equal."""
    shared = {dim for dim in before if isinstance(dim, str)} & set(after)
    left, right = ([dim for dim in dims if not isinstance(dim, int) and dim not in shared] for dims in (before, after))
    products = [math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (before, after)]
    alike = all(before.count(dim) == after.count(dim) for dim in shared)
    if len(left) != 1 or len(right) != 1 or products[0] != products[1] or not alike:
        return before, after
    name = "the unknown size"
    return [name if dim == left[0] else dim for dim in before], [name if dim == right[0] else dim for dim in after]


def _common(left: Sequence[Dim], right: Sequence[Dim]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a is None or a != b:
            break
        count += 1
    return count


def _period(lengths: tuple[int, ...], dims: Sequence[Dim]) -> tuple[tuple[int, ...], int]:
    """Lengths to broadcast to, and their product: the period of the flat ids."""
    varying = [axis for axis, length in enumerate(lengths) if length > 1]
    if not varying:
        return (1,) * len(lengths), 1
    first = varying[0]
    inner = dims[first + 1 :]
    if any(not isinstance(dim, int) for dim in inner) or any(
        length not in (1, dim) for length, dim in zip(lengths[first + 1 :], inner, strict=True)
    ):
        raise Blocked("a Reshape mixes scaled channels with an axis whose size is not known")
    shape = (*(1,) * first, lengths[first], *(dim for dim in inner if isinstance(dim, int)))
    return shape, math.prod(shape)


def _deal(period: int, dims: Sequence[Dim]) -> list[int]:
    """Split a period over axes from the last to the first."""
    lengths: list[int] = []
    for place, dim in enumerate(reversed(dims), start=1):
        if not isinstance(dim, int):
            if period > 1 and place < len(dims):
                raise Blocked("a Reshape mixes scaled channels with an axis whose size is not known")
            lengths.append(period)
            period = 1
        elif period % dim == 0:
            lengths.append(dim)
            period //= dim
        elif dim % period == 0:
            lengths.append(period)
            period = 1
        else:
            raise Blocked("a Reshape cuts through scaled channels")
    if period != 1:
        raise Blocked("a Reshape cuts through scaled channels")
    return lengths[::-1]
