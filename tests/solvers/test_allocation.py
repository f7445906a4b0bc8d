"""Allocation: against all choices there are, and against the bound of its relaxation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcompile.solvers.allocation import Option, allocate, fewest


def drawn(seed: int, things: int = 5) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, things)
    return [[Option(float(rng.integers(1, 20)), float(rng.integers(0, 50))) for _ in range(count)] for count in counts]


def totals(things: list[list[Option]]) -> list[tuple[float, float]]:
    """Size and error of every choice."""
    return [
        (sum(option.size for option in choice), sum(option.error for option in choice))
        for choice in itertools.product(*things)
    ]


def relaxed(choices: list[tuple[float, float]], budget: float) -> float:
    """The smallest error of any mixture of two choices whose mean size is the budget or less."""
    least = min(error for size, error in choices if size <= budget)
    for (small, much), (large, little) in itertools.product(choices, choices):
        if small <= budget < large and little < much:
            least = min(least, much + (little - much) * (budget - small) / (large - small))
    return least


@pytest.mark.parametrize("seed", range(40))
def test_error_is_within_a_step_of_the_bound(seed: int) -> None:
    things = drawn(seed, things=4)
    choices = totals(things)
    smallest = min(size for size, _ in choices)
    step = max(max(o.error for o in options) - min(o.error for o in options) for options in things)
    for budget in np.linspace(smallest, smallest + 40, 9):
        found = allocate(things, float(budget))
        taken = [options[index] for options, index in zip(things, found.chosen, strict=True)]
        assert (found.size, found.error) == (sum(o.size for o in taken), sum(o.error for o in taken))
        assert found.met
        assert found.size <= budget
        assert relaxed(choices, budget) - 1e-9 <= found.error <= relaxed(choices, budget) + step + 1e-9


@pytest.mark.parametrize("seed", range(40))
def test_it_is_optimal_for_the_sizes_that_a_price_of_size_gives(seed: int) -> None:
    things = drawn(seed)
    choices = totals(things)
    for price in (0.1, 0.7, 2.3, 9.0):
        _, size, error = min((error + price * size, size, error) for size, error in choices)
        assert allocate(things, size).error == error


def test_a_budget_that_nothing_meets() -> None:
    things = [[Option(4, 1), Option(2, 9), Option(2, 5)], [Option(3, 0)]]
    found = allocate(things, 4.5)
    assert (found.chosen, found.size, found.met) == ((2, 0), 5, False)


def test_a_budget_for_everything_takes_the_smallest_errors_at_the_smallest_size() -> None:
    things = [[Option(2, 8), Option(3, 4), Option(8, 1), Option(9, 1)]]
    found = allocate(things, 100)
    assert (found.chosen, found.met) == ((2,), True)


def test_an_option_above_the_hull_is_not_taken() -> None:
    assert allocate([[Option(2, 10), Option(3, 9), Option(4, 0)]], 3.5).chosen == (0,)
    assert allocate([[Option(2, 10), Option(3, 9), Option(4, 0)]], 4).chosen == (2,)


def test_a_step_that_does_not_fit_leaves_room_for_others() -> None:
    things = [[Option(1, 100), Option(10, 0)], [Option(1, 5), Option(2, 1)]]
    assert allocate(things, 5).chosen == (0, 1)


def test_nothing_to_store() -> None:
    assert allocate([], 0.0).met


@pytest.mark.parametrize("seed", range(40))
def test_the_fewest_that_cost_no_more_than_they_may(seed: int) -> None:
    things, asked = drawn(seed), list[tuple[int, ...]]()

    def cost(chosen: tuple[int, ...]) -> float:
        asked.append(chosen)
        return sum(options[index].error for options, index in zip(things, chosen, strict=True))

    choices, steps = totals(things), sum(len(options) - 1 for options in things)
    step = max(max(o.size for o in options) - min(o.size for o in options) for options in things)
    least = sum(min(option.error for option in options) for options in things)
    for most in (least, least + 10.0, least + 30.0, 1e9):
        asked.clear()
        found = fewest(things, cost, most)
        assert found.met
        assert found.error <= most
        assert len(asked) <= 1 + np.log2(steps + 1)
        at_this_size = allocate(things, found.size)
        assert (found.size, found.error) == (at_this_size.size, at_this_size.error)
        smallest = min(size for size, error in choices if error <= most)
        assert smallest <= found.size <= smallest + step
    none = fewest(things, cost, least - 1)
    assert (none.met, none.error) == (False, least)
