"""Bits among weights: for each one of several sizes with its error, so that all together are small and err little."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to store something.

    Attributes:
        size: how much room it takes, finite.
        error: what it costs, finite; errors of several things add up.
    """

    size: float
    error: float


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One option for each thing.

    Attributes:
        chosen: index of the option of each.
        size: of all together.
        error: of all together.
        met: whether `size` is at most the budget.
    """

    chosen: tuple[int, ...]
    size: float
    error: float
    met: bool


def allocate(things: Sequence[Sequence[Option]], budget: float) -> Allocation:
    """Choose an option for each thing, with the smallest error that it finds within the budget.

    Where no choice fits, it is the smallest, and `met` is False. Else it starts from the smallest and takes the step to
    a larger option that saves most error for its size, over and over, and leaves out steps that do not fit. Steps are
    those along the lower convex hull of a thing's options, so that the first ones are optimal (the relaxation of the
    multiple-choice knapsack: Sinha and Zoltners 1979); the error is above the smallest that exists by less than the
    first step saves that was left out.

    Args:
        things: the options of each, at least one.
        budget: most that all together may take.
    """
    hulls = [_hull(options) for options in things]
    size = sum(options[hull[0]].size for options, hull in zip(things, hulls, strict=True))
    place = [0] * len(hulls)
    steps = [(-_rate(things[index], hull, 0), index) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, index = heapq.heappop(steps)
        options, hull, now = things[index], hulls[index], place[index]
        added = options[hull[now + 1]].size - options[hull[now]].size
        if size + added > budget:
            continue  # those behind it on this hull are larger still
        size, place[index] = size + added, now + 1
        if now + 2 < len(hull):
            heapq.heappush(steps, (-_rate(options, hull, now + 1), index))
    chosen = tuple(hull[now] for hull, now in zip(hulls, place, strict=True))
    taken = [options[index] for options, index in zip(things, chosen, strict=True)]
    total = sum(option.size for option in taken)
    return Allocation(chosen, total, sum(option.error for option in taken), total <= budget)


def _hull(options: Sequence[Option]) -> list[int]:
    """Return the options on the lower convex hull of error over size, from the smallest on, as long as errors fall."""
    hull: list[int] = []
    for index in sorted(range(len(options)), key=lambda place: (options[place].size, options[place].error)):
        if hull and options[index].error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) <= _slope(options, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _slope(options: Sequence[Option], first: int, last: int) -> float:
    """Return the error that is saved for each unit of size between two options of different sizes."""
    return (options[first].error - options[last].error) / (options[last].size - options[first].size)


def _rate(options: Sequence[Option], hull: Sequence[int], place: int) -> float:
    return _slope(options, hull[place], hull[place + 1])
