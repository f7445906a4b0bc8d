"""The search for the fewest layers that stay float, on made-up costs and on any scores."""

from __future__ import annotations

import math

import hypothesis
import pytest
from hypothesis import strategies

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
        found = fewest_kept(len(self.costs), self.score, lowest=lowest, max_trials=max_trials)
        assert len(set(self.asked)) == len(self.asked) == found.trials <= max_trials + 1
        assert found.score == self.score(found.kept)
        return found


def test_nothing_is_kept_where_the_budget_holds_without():
    assert Model(0.001, 0.001).search(0.99) == Found(frozenset(), pytest.approx(0.998), True, 1)
    assert Model().search(0.99) == Found(frozenset(), 1.0, True, 1)


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


def test_long_rows_of_spare_units_are_given_up_in_few_trials():
    found = Model(*[0.0] * 200, 0.5, *[0.0] * 200, 0.5).search(1.0)
    assert found.kept == {200, 401}
    assert found.trials <= 2 * math.ceil(math.log2(402)) + 4 * math.ceil(math.log2(200)) + 4


def test_all_are_kept_where_nothing_less_holds():
    assert Model(0.1, 0.1, 0.1).search(1.0) == Found(frozenset({0, 1, 2}), 1.0, True, 6)


def test_without_trials_left_all_are_kept_where_nothing_less_was_found_to_hold():
    assert Model(*[0.1] * 9).search(1.0, max_trials=3) == Found(frozenset(range(9)), 1.0, True, 4, complete=False)
    assert Model(0.5, 0.1).search(1.0, max_trials=1) == Found(frozenset({0, 1}), 1.0, True, 2, complete=False)


def test_without_trials_left_what_holds_is_kept_though_it_is_not_the_smallest():
    found = Model(0.001, *[0.1] * 5, *[0.0] * 10).search(0.99, max_trials=5)
    assert (found.kept, found.holds, found.complete) == (frozenset(range(8)), True, False)


def test_where_not_even_all_hold_the_highest_score_is_returned_and_does_not_hold():
    found = fewest_kept(2, lambda kept: 0.7 if kept == {0} else 0.5, lowest=0.9, max_trials=9)
    assert found == Found(frozenset({0}), 0.7, False, 3)


def test_a_score_that_is_no_number_does_not_hold():
    found = fewest_kept(2, lambda kept: 1.0 if 0 in kept else math.nan, lowest=0.0, max_trials=9)
    assert found == Found(frozenset({0}), 1.0, True, 2)
    found = fewest_kept(2, lambda _kept: math.nan, lowest=0.0, max_trials=9)
    assert (found.kept, found.holds, found.trials) == ({0, 1}, False, 3)
    assert math.isnan(found.score)


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(data=strategies.data(), count=strategies.integers(0, 9), max_trials=strategies.integers(1, 40))
def test_what_is_returned_was_asked_for_and_is_called_holding_only_where_it_holds(data, count, max_trials):
    scores: dict[Units, float] = {}
    lowest = data.draw(strategies.floats(-1, 1))

    def score(kept: Units) -> float:
        assert kept not in scores
        assert kept <= set(range(count))
        scores[kept] = data.draw(strategies.floats(-1.5, 1.5) | strategies.sampled_from([math.nan, math.inf, lowest]))
        return scores[kept]

    found = fewest_kept(count, score, lowest=lowest, max_trials=max_trials)
    assert found.score is scores[found.kept]
    assert found.trials == len(scores) <= max_trials + 1
    holding = [kept for kept, each in scores.items() if each >= lowest]
    assert found.holds == bool(holding)
    if holding:
        assert len(found.kept) == min(map(len, holding))
    else:
        numbers = [each for each in scores.values() if not math.isnan(each)]
        assert found.score == max(numbers) if numbers else math.isnan(found.score)


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(
    costs=strategies.lists(strategies.integers(0, 9), max_size=8),
    lowest=strategies.integers(-40, 0),
    max_trials=strategies.integers(1, 60),
)
def test_a_bound_that_all_hold_is_always_held_and_none_can_be_given_up_while_trials_last(costs, lowest, max_trials):
    def score(kept: Units) -> float:
        return -sum(cost for unit, cost in enumerate(costs) if unit not in kept)

    found = fewest_kept(len(costs), score, lowest=lowest, max_trials=max_trials)
    assert found.holds
    assert found.score == score(found.kept) >= lowest
    assert found.complete or found.trials >= max_trials
    if found.complete:
        assert all(score(found.kept - {unit}) < lowest for unit in found.kept)
