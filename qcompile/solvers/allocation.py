"""Bits among weights: for each one of several sizes with its error, so that all together are small and err little."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence


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
        met: whether `size` is at most the budget, or what it costs at most what it may.
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
    place, full = [0] * len(hulls), set[int]()
    for index in _steps(things, hulls):
        options, hull, now = things[index], hulls[index], place[index]
        added = options[hull[now + 1]].size - options[hull[now]].size
        if index in full or size + added > budget:
            full.add(index)  # the steps behind it on this hull are larger still
            continue
        size, place[index] = size + added, now + 1
    chosen = tuple(hull[now] for hull, now in zip(hulls, place, strict=True))
    total, error = _sums(things, chosen)
    return Allocation(chosen, total, error, total <= budget)


def fewest(things: Sequence[Sequence[Option]], cost: Callable[[Sequence[int]], float], most: float) -> Allocation:
    """Choose an option for each thing, so that they are as small as it finds and cost no more than they may.

    It takes the steps of `allocate` in their order, as many as are needed, and finds how many that are by halving: a
    step may be one too many where the cost does not fall with every step. Where no choice does, it is that behind the
    last step, and `met` is False.

    Args:
        things: the options of each, at least one.
        cost: what a choice, an index for each thing, costs; it is asked once for each halving.
        most: what it may cost at most.
    """
    hulls = [_hull(options) for options in things]
    steps = _steps(things, hulls)

    def chosen(count: int) -> tuple[int, ...]:
        place = [0] * len(hulls)
        for index in steps[:count]:
            place[index] += 1
        return tuple(hull[now] for hull, now in zip(hulls, place, strict=True))

    def holds(count: int) -> bool:
        return cost(chosen(count)) <= most

    count = bisect.bisect_left(range(len(steps) + 1), True, key=holds)
    found = chosen(min(count, len(steps)))
    return Allocation(found, *_sums(things, found), met=count <= len(steps))


def _steps(things: Sequence[Sequence[Option]], hulls: Sequence[Sequence[int]]) -> list[int]:
    """Return the index of a thing for each step along its hull, the step that saves most error for its size first.

    On a convex hull the rates fall, so the steps of one thing come in their order.
    """
    rates = [
        (-_rate(options, hull, place), index)
        for index, (options, hull) in enumerate(zip(things, hulls, strict=True))
        for place in range(len(hull) - 1)
    ]
    return [index for _, index in sorted(rates)]


def _sums(things: Sequence[Sequence[Option]], chosen: Sequence[int]) -> tuple[float, float]:
    taken = [options[index] for options, index in zip(things, chosen, strict=True)]
    return sum(option.size for option in taken), sum(option.error for option in taken)


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
