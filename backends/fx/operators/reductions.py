"""Operators that take one number from many: sums, extremes, where they are; cumulative ones and sorting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qcompile.backends.fx.host import Host, Numbers, ints, single
from qcompile.backends.fx.operators.elementwise import in_front, wide
from qcompile.backends.fx.table import operator


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return torch.div(x.sum(axes, keepdim=keep), _sum(torch.ones_like(x), axes, keep), rounding_mode="trunc")


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x if keep else x.squeeze(axes)


def _largest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _empty(x, axes, keep, least=True)
    return x.amax(axes, keepdim=keep)


def _smallest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        return _empty(x, axes, keep, least=False)
    return x.amin(axes, keepdim=keep)


def _empty(x: Tensor, axes: tuple[int, ...], keep: bool, least: bool) -> Tensor:
    """The extreme of no elements: that from which every element leads away."""
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if x.is_floating_point():
        bound: float = -torch.inf if least else torch.inf
    else:
        bound = torch.iinfo(x.dtype).min if least else torch.iinfo(x.dtype).max
    made = torch.full(shape, bound, dtype=x.dtype, device=x.device)
    return made if keep else made.squeeze(axes)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _norm1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _norm2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep).sqrt()


def _square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


_ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}
"""What becomes of an element that is reduced over no axis; the others leave it as it is."""


def _reduction(name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    @operator(name, host=("axes",))
    def apply(x: Tensor, axes: Numbers | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = () if axes is None else tuple(axis % x.dim() for axis in ints(axes))
        if not chosen and (noop_with_empty_axes or x.dim() == 0):
            return _ALONE[name](x) if name in _ALONE else x
        computed = x.to(torch.uint8) if x.dtype is torch.bool else wide(x)
        made = function(computed, chosen or tuple(range(x.dim())), bool(keepdims))
        return made.to(x.dtype)

    apply.__name__ = apply.__qualname__ = name


for _name, _function in {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _largest,
    "ReduceMin": _smallest,
    "ReduceL1": _norm1,
    "ReduceL2": _norm2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _square,
}.items():
    _reduction(_name, _function)


def _place(function: Callable[..., Tensor], x: Tensor, axis: int, keep: int, last: int) -> Tensor:
    """Where the extreme is; `argmax` of torch may return any of several, so the places are compared."""
    x = wide(x)
    found = x == function(x, axis, keepdim=True)
    steps = in_front(torch.arange(x.shape[axis], device=x.device), x.dim() - 1 - axis % x.dim())
    if last:
        return torch.where(found, steps, -1).amax(axis, keepdim=bool(keep))
    return torch.where(found, steps, x.shape[axis]).amin(axis, keepdim=bool(keep))


@operator("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest is, the first or the last of several."""
    return _place(torch.amax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the smallest is, the first or the last of several."""
    return _place(torch.amin, x, axis, keepdims, select_last_index)


def _cumulative(
    function: Callable[..., Tensor], x: Tensor, axis: int, exclusive: int, reverse: int, neutral: int
) -> Tensor:
    turned = x.flip(axis) if reverse else x
    made = function(wide(turned), axis).to(x.dtype)
    if exclusive:
        first = torch.full_like(made.narrow(axis, 0, 1), neutral)
        made = torch.cat([first, made.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return made.flip(axis) if reverse else made


@operator("CumSum", host=("axis",))
def cum_sum(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The sum of what is before, and of the element itself unless exclusive."""
    return _cumulative(torch.cumsum, x, int(single(axis)), exclusive, reverse, 0)


@operator("CumProd", host=("axis",))
def cum_prod(x: Tensor, axis: Host, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """The product of what is before, and of the element itself unless exclusive."""
    return _cumulative(torch.cumprod, x, int(single(axis)), exclusive, reverse, 1)


@operator("TopK", host=("k",))
def top_k(
    x: Tensor,
    k: Host | int,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: ARG001 - always sorted
) -> tuple[Tensor, Tensor]:
    """The largest along an axis and where they are, the first of equals first."""
    ordered, places = torch.sort(wide(x), dim=axis, descending=bool(largest), stable=True)
    count = int(single(k))
    return ordered.narrow(axis, 0, count).to(x.dtype), places.narrow(axis, 0, count)


@operator("Unique")
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each value once, where it first is, which it is for each element, and how often."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    steps = torch.arange(inverse.shape[0], device=x.device)
    size = torch.full_like(counts, inverse.shape[0])
    first = size.scatter_reduce(0, inverse, steps, "amin")
    if sorted:
        return values, first, inverse, counts
    order = torch.argsort(first)
    return values.index_select(axis, order), first[order], torch.argsort(order)[inverse], counts[order]
