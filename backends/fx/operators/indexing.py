"""Operators that choose elements by position, or write to positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Host, Numbers, ints, single
from qcompile.backends.fx.operators.elementwise import in_front, wide
from qcompile.backends.fx.table import operator


def counted(index: Tensor, size: int) -> Tensor:
    """Positions with negative ones counted from behind, as int64."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("Gather")
def gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    """Entries along an axis."""
    axis %= x.dim()
    chosen = counted(index, x.shape[axis])
    made = x.index_select(axis, chosen.reshape(-1))
    return made.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    """For each position, the element at an index along an axis."""
    return wide(x).gather(axis, counted(index, x.shape[axis])).to(x.dtype)


@operator("GatherND")
def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Entries at the places that the last axis of the index says."""
    depth = index.shape[-1]
    places = [counted(index[..., axis], x.shape[batch_dims + axis]) for axis in range(depth)]
    rank = index.dim() - 1
    before = [in_front(torch.arange(x.shape[axis], device=x.device), rank - 1 - axis) for axis in range(batch_dims)]
    return x[tuple(before + places)]


@operator("Slice", host=("starts", "ends", "axes", "steps"))
def slice_(
    x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    """A part of some axes."""
    first, last = ints(starts), ints(ends)
    along = list(range(len(first))) if axes is None else ints(axes)
    strides = [1] * len(first) if steps is None else ints(steps)
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        x = _part(x, axis % x.dim(), start, end, step)
    return x


def _part(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, end, step),)]
    size = x.shape[axis]
    first = min(start + size if start < 0 else start, size - 1)
    last = max(end + size if end < 0 else end, -1)
    return x.index_select(axis, torch.arange(first, last, step, device=x.device))


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """X with elements at indices along an axis replaced, or combined."""
    place = counted(index, x.shape[axis])
    if reduction == "none":
        return wide(x).scatter(axis, place, wide(updates)).to(x.dtype)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return wide(x).scatter_reduce(axis, place, wide(updates), how).to(x.dtype)


@operator("ScatterND")
def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """X with the entries at the places that the last axis of the index says replaced, or combined."""
    depth = index.shape[-1]
    places = tuple(counted(index[..., axis], x.shape[axis]) for axis in range(depth))
    if reduction == "none":
        return wide(x).index_put(places, wide(updates)).to(x.dtype)
    if reduction == "add":
        return wide(x).index_put(places, wide(updates), accumulate=True).to(x.dtype)
    how = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    sizes = x.shape[:depth]
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place
    whole = x.reshape(-1, *x.shape[depth:])
    parts = updates.reshape(-1, *x.shape[depth:])
    spread = in_front(flat.reshape(-1), x.dim() - depth).expand_as(parts)
    return wide(whole).scatter_reduce(0, spread, wide(parts), how).to(x.dtype).reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
    in_place: bool,
) -> Tensor:
    """A cache with new entries along an axis, from a position for each sample; circular: over the end.

    Where it may be written to, and no gradient is asked of it, the entries are written into the cache that was given.
    """
    axis %= past.dim()
    places = torch.arange(update.shape[axis], device=past.device)[None, :]
    if write_indices is not None:
        places = places + write_indices.to(torch.int64)[:, None]
    if mode == "circular":
        places = places % past.shape[axis]
    rows = torch.arange(past.shape[0], device=past.device)[:, None]
    moved, new = past.movedim(axis, 1), update.movedim(axis, 1)
    where = (rows, places.expand(past.shape[0], -1))
    if in_place and not past.requires_grad:
        moved.index_put_(where, new)
        return past
    return moved.index_put(where, new).movedim(1, axis)


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """Entries along an axis for which the condition holds; of the flat tensor where there is none."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.reshape(-1).nonzero().reshape(-1))


@operator("NonZero")
def non_zero(x: Tensor) -> Tensor:
    """Places of the elements that are not 0, an axis in a row."""
    return torch.nonzero(x).t() if x.dim() else torch.nonzero(x).reshape(0, -1)


@operator("OneHot", host=("depth",))
def one_hot(index: Tensor, depth: Host, values: Tensor, *, axis: int = -1) -> Tensor:
    """The second value at the index along a new axis, the first elsewhere."""
    size = int(single(depth))
    axis = axis % (index.dim() + 1)
    steps = torch.arange(size, device=index.device)
    chosen = counted(index, size).unsqueeze(axis) == in_front(steps, index.dim() - axis)
    return torch.where(chosen, values[1], values[0])


@operator("Pad", host=("pads", "axes"))
def pad(
    x: Tensor,
    pads: Numbers | None = None,
    value: Tensor | float | None = None,
    axes: Numbers | None = None,
    *,
    mode: str = "constant",
    paddings: Numbers | None = None,
) -> Tensor:
    """More elements (fewer, where negative) at both ends of axes: a constant, or taken from the tensor."""
    given = pads if pads is not None else paddings
    assert given is not None
    widths = ints(given)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in ints(axes)]
    if mode == "constant":
        pairs = [0] * (2 * x.dim())
        for index, axis in enumerate(along):
            pairs[2 * (x.dim() - 1 - axis)], pairs[2 * (x.dim() - 1 - axis) + 1] = (
                widths[index],
                widths[index + len(along)],
            )
        return _constant(x, pairs, value)
    for index, axis in enumerate(along):
        before, behind = widths[index], widths[index + len(along)]
        places = torch.arange(-before, x.shape[axis] + behind, device=x.device)
        x = x.index_select(axis, _reflected(places, x.shape[axis], mode))
    return x


def _constant(x: Tensor, pairs: list[int], value: Tensor | float | None) -> Tensor:
    if not isinstance(value, Tensor):
        return functional.pad(x, pairs, value=value or 0)
    whole = functional.pad(x, pairs)
    inside = functional.pad(torch.ones_like(x, dtype=torch.bool), pairs)
    return torch.where(inside, whole, value.reshape(()))


def _reflected(places: Tensor, size: int, mode: str) -> Tensor:
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    folded = places % period
    return torch.where(folded < size, folded, period - folded)


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first elements of each sample along the time axis in the other direction."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)[None, :]
    ends = lengths[:, None]
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, places].movedim((0, 1), (batch_axis, time_axis))
