"""The search for the fewest layers that stay float, on made-up costs."""

from __future__ import annotations

import math

import pytest

from qcompile.solvers.fewest_kept import Found, Units, fewest_kept


class Model:
    """Each unit that is not kept costs its part of the score, which is 1 with all kept; counts what is asked."""

    def __init__(self, *costs: float) -> None:
        self.costs = costs
        self.asked: list[Units] = []

    def score(self, kept: Units) -> float:
        self.asked.append(kept)
        return 1 - sum(cost for unit, cost in enumerate(self.costs) if unit not in kept)

    def search(self, lowest: float, max_trials: int = 100) -> Found:
        found = fewest_kept(len(self.costs), self.score, lowest=lowest, best=1.0, max_trials=max_trials)
        assert len(set(self.asked)) == len(self.asked) == found.trials <= max_trials
        assert found.kept == frozenset(range(len(self.costs))) or found.score == self.score(found.kept)
        return found


def test_nothing_is_kept_where_the_budget_holds_without():
    assert Model(0.001, 0.001).search(0.99) == Found(frozenset(), pytest.approx(0.998), True, 1)
    assert Model().search(0.99) == Found(frozenset(), 1.0, True, 0)


@pytest.mark.parametrize("count", range(1, 40))
def test_the_shortest_run_is_found_in_few_trials(count):
    found = Model(*[0.01] * count, *[0.0] * (40 - count)).search(1.0)
    assert found.kept == frozenset(range(count))
    assert found.holds
    assert found.trials <= 2 * math.ceil(math.log2(40)) + 1 + count


def test_units_that_are_ranked_too_high_are_given_up():
    model = Model(0.001, 0.3, 0.001, 0.2, 0.001)
    found = model.search(0.95)
    assert found.kept == {1, 3}
    assert found.holds


def test_all_are_kept_where_nothing_less_holds():
    assert Model(0.1, 0.1, 0.1).search(1.0) == Found(frozenset({0, 1, 2}), 1.0, True, 3)


def test_without_trials_left_the_best_that_was_seen_is_returned():
    model = Model(*[0.1] * 9)
    assert model.search(1.0, max_trials=3) == Found(frozenset({0, 1}), pytest.approx(0.3), False, 3)
    assert Model(0.5, 0.1).search(1.0, max_trials=1).kept == frozenset()


def test_without_trials_left_what_holds_is_kept_though_it_is_not_the_smallest():
    found = Model(0.001, *[0.1] * 5, *[0.0] * 10).search(0.99, max_trials=5)
    assert found.holds
    assert found.kept == frozenset(range(8))


def test_a_score_that_is_no_number_does_not_hold():
    found = fewest_kept(2, lambda kept: 1.0 if 0 in kept else math.nan, lowest=0.0, best=1.0, max_trials=9)
    assert found == Found(frozenset({0}), 1.0, True, 2)
