"""What users hand over as a budget of accuracy, and what their metric returns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qcompile.accuracy_budget import AccuracyBudget, score
from qcompile.errors import InputError, RecipeError


def nothing(_feed):
    return {}


def metric(run):
    return float(run({"x": np.ones(2)})["y"].sum())


def test_a_budget_may_be_given_as_a_mapping():
    given = {"max_drop": 0.01, "metric": metric, "drop_type": "relative", "max_trials": 5}
    assert AccuracyBudget.of(given) == AccuracyBudget(0.01, metric, "relative", 5)
    assert AccuracyBudget.of({"max_drop": 0}) == AccuracyBudget(0)
    assert AccuracyBudget.of(None) is None
    budget = AccuracyBudget(0.5)
    assert AccuracyBudget.of(budget) is budget


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        (0.01, "accuracy"),
        ({}, "accuracy"),
        ({"metric": metric}, "accuracy"),
        ({"max_drop": 0.01, "validation_fn": metric}, "accuracy['validation_fn']"),
        ({"max_drop": -0.1}, "max_drop -0.1"),
        ({"max_drop": "1%"}, "max_drop '1%'"),
        ({"max_drop": True}, "max_drop True"),
        ({"max_drop": math.nan}, "max_drop nan"),
        ({"max_drop": 0.1, "metric": "accuracy"}, "metric"),
        ({"max_drop": 0.1, "drop_type": "percent"}, "drop_type 'percent'"),
        ({"max_drop": 0.1, "max_trials": 0}, "max_trials 0"),
        ({"max_drop": 0.1, "max_trials": 2.0}, "max_trials 2.0"),
    ],
)
def test_what_is_no_budget_is_refused_by_name(given, subject):
    with pytest.raises(RecipeError) as raised:
        AccuracyBudget.of(given)
    assert raised.value.subject == subject


def test_a_drop_is_absolute_or_a_part_of_the_float_score():
    assert AccuracyBudget(0.1).lowest(2.0) == pytest.approx(1.9)
    assert AccuracyBudget(0.1, drop_type="relative").lowest(2.0) == pytest.approx(1.8)
    assert AccuracyBudget(0.1, drop_type="relative").lowest(-2.0) == pytest.approx(-2.2), "of a loss, negated"


@pytest.mark.parametrize("found", [0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_a_metric_returns_any_number(found):
    assert score(lambda _run: found, nothing) == 0.5


class Broken:
    """No number, whatever it promises."""

    def __float__(self) -> float:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    "found",
    [None, [1.0, 2.0], {"accuracy": 1.0}, "0.5", b"1", 1j, np.complex64(1), np.ones(2), 10**400, Broken()],
    ids=lambda found: type(found).__name__,
)
def test_a_metric_that_returns_no_number_is_named(found):
    with pytest.raises(RecipeError, match=f"metric: it returned a {type(found).__name__}"):
        score(lambda _run: found, nothing)


def test_a_metric_that_fails_is_named_and_an_error_of_the_model_passes():
    with pytest.raises(RecipeError, match="metric: it raised KeyError: 'logits'") as raised:
        score(lambda run: run({})["logits"], nothing)
    assert isinstance(raised.value.__cause__, KeyError)

    def refuses(_feed):
        raise InputError("input x", "it is missing", "Give it")

    with pytest.raises(InputError):
        score(metric, refuses)
