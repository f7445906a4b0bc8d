"""Pooling: the extreme, the mean or the norm of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompile.backends.fx.host import Numbers, ints
from qcompile.backends.fx.operators.convolution import flat, window_pads
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.table import operator


def _windows(
    x: Tensor,
    kernel: Sequence[int],
    steps: Sequence[int],
    spread: Sequence[int],
    pads: Sequence[tuple[int, int]],
    ceil_mode: int,
    filling: float,
) -> Tensor:
    """Every window as a last axis; beyond the pads, where ceil_mode reaches, is the filling too."""
    rank = len(kernel)
    added = list(pads)
    counts = []
    for axis in range(rank):
        reach = spread[axis] * (kernel[axis] - 1) + 1
        before, behind = added[axis]
        size = x.shape[2 + axis] + before + behind
        count = (-(-(size - reach) // steps[axis]) if ceil_mode else (size - reach) // steps[axis]) + 1
        if ceil_mode and (count - 1) * steps[axis] >= x.shape[2 + axis] + before:
            count -= 1  # a window that begins behind the tensor is none
        added[axis] = (before, behind + max((count - 1) * steps[axis] + reach - size, 0))
        counts.append(count)
    x = functional.pad(x, flat(added), value=filling)
    for axis in range(rank):
        start = torch.arange(counts[axis], device=x.device) * steps[axis]
        inside = torch.arange(kernel[axis], device=x.device) * spread[axis]
        places = (start[:, None] + inside).reshape(-1)
        sizes = (*x.shape[: 2 + axis], counts[axis], kernel[axis], *x.shape[3 + axis :])
        x = x.index_select(2 + axis, places).reshape(sizes).movedim(3 + axis, -1)
    return x.flatten(2 + rank)


_LARGEST = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEANS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _even(kernel: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int] | None:
    """The pads as torch's pooling takes them: the same at both ends, at most half the kernel; else None."""
    fits = all(before == behind and 2 * before <= width for (before, behind), width in zip(pads, kernel, strict=True))
    return [before for before, _ in pads] if fits else None


def _settings(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    steps, spread = list(strides or [1] * len(kernel)), list(dilations or [1] * len(kernel))
    return steps, spread, window_pads(x.shape[2:], kernel, steps, spread, pads, auto_pad)


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """The largest of each window, and where it is in the flat tensor."""
    steps, spread, added = _settings(x, kernel_shape, strides, dilations, pads, auto_pad)
    even = _even(kernel_shape, added)
    if outputs < 2 and not ceil_mode and even is not None and x.is_floating_point() and len(steps) in _LARGEST:
        return (_LARGEST[len(steps)](x, list(kernel_shape), steps, even, spread),)
    least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    windows = _windows(x, kernel_shape, steps, spread, added, ceil_mode, least)
    values, chosen = windows.max(-1)
    if outputs < 2:
        return (values,)
    sizes = x.shape[2:]
    order = range(len(sizes)) if not storage_order else range(len(sizes))[::-1]
    flat_index = torch.zeros(tuple(sizes), dtype=torch.float64, device=x.device)
    stride = 1
    for axis in list(order)[::-1]:
        steps_of = torch.arange(sizes[axis], device=x.device, dtype=torch.float64)
        flat_index = flat_index + in_front(steps_of, len(sizes) - 1 - axis) * stride
        stride = stride * sizes[axis]
    places = _windows(flat_index[None, None], kernel_shape, steps, spread, added, ceil_mode, 0)
    spots = places.expand(*values.shape, -1).gather(-1, chosen[..., None])[..., 0].to(torch.int64)
    image = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(sizes)
    return values, spots + in_front(image.reshape(x.shape[:2]), len(sizes))


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean of each window: of its elements, with those of the pads where they count."""
    steps, spread, added = _settings(x, kernel_shape, strides, dilations, pads, auto_pad)
    even = _even(kernel_shape, added)
    if not ceil_mode and even is not None and set(spread) == {1} and len(steps) in _MEANS:
        return _MEANS[len(steps)](x, list(kernel_shape), steps, even, False, bool(count_include_pad))
    total = _windows(x, kernel_shape, steps, spread, added, ceil_mode, 0).sum(-1)
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        ones, added = functional.pad(ones, flat(added), value=1), [(0, 0)] * len(added)
        # What ceil_mode adds behind the pads does not count.
    count = _windows(ones, kernel_shape, steps, spread, added, ceil_mode, 0).sum(-1)
    parts = tuple(slice(0, size) for size in total.shape[2:])
    return total / count[(slice(None), slice(None), *parts)]


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int],
    p: float = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The norm of each window."""
    steps, spread, added = _settings(x, kernel_shape, strides, dilations, pads, auto_pad)
    windows = _windows(x, kernel_shape, steps, spread, added, ceil_mode, 0)
    return windows.abs().pow(p).sum(-1).pow(1 / p)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """The largest of each channel."""
    return x.amax(_spatial(x), keepdim=True)


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    """The norm of each channel."""
    return x.abs().pow(p).sum(_spatial(x), keepdim=True).pow(1 / p)


@operator("MaxUnpool", host=("output_shape",))
def max_unpool(
    x: Tensor,
    index: Tensor,
    output_shape: Numbers | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The values at the places that MaxPool found, 0 elsewhere."""
    rank = x.dim() - 2
    steps, around = list(strides or [1] * rank), list(pads or [0] * (2 * rank))
    inferred = [
        (x.shape[2 + axis] - 1) * steps[axis] - around[axis] - around[axis + rank] + kernel_shape[axis]
        for axis in range(rank)
    ]
    whole = x.new_zeros([x.shape[0] * x.shape[1] * math.prod(inferred)])
    made = whole.scatter(0, index.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *inferred)
    if output_shape is None:
        return made
    wanted = ints(output_shape)[2:]
    return functional.pad(made, flat([(0, want - have) for want, have in zip(wanted, inferred, strict=True)]))
