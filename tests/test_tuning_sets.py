"""Decisions on measured times: pure functions of numbers."""

import pytest

from qcompile.tuning_groups import Group
from qcompile.tuning_sets import Candidate, Times, named_times, picked, promising, reasons
from qcompile.tuning_times import faster

FIRST = Group("MatMul", (), (1, 8), (8, 8), False, ())
SECOND = Group("MatMul", (), (1, 4), (4, 8), False, ())


def times(integer, ours, alone=None):
    return Times({"integer": integer, "float": ours, "float alone": ours if alone is None else alone}, (1, 8))


@pytest.mark.parametrize(
    ("integer", "other", "expected"),
    [(1.0, 0.94, True), (1.0, 0.96, False), (1.0, 1.1, False), (0.010, 0.006, False), (0.010, 0.004, True)],
    ids=["clearly", "by noise", "not", "by less than timers tell", "though short"],
)
def test_faster_is_by_more_than_noise(integer, other, expected):
    assert faster({"integer": integer, "float": other}, "float") is expected
    assert not faster({"integer": integer}, "float")


def test_layers_of_one_name_are_added_up_and_unmeasured_ones_left_out():
    grouped = [
        ("twice", FIRST),
        ("twice", SECOND),
        ("half", FIRST),
        ("half", Group("MatMul", (), (1,), (1,), True, ())),
    ]
    measured = {FIRST: {"integer": 1.0, "float": 3.0}, SECOND: {"integer": 2.0, "float": 2.0, "float alone": 1.0}}
    found = named_times(grouped, measured)
    assert found == {"twice": Times({"integer": 3.0, "float": 5.0, "float alone": 4.0}, (1, 8))}


def test_nothing_is_tried_where_less_than_noise_could_be_won():
    assert promising({"small": times(0.1, 0.05), "large": times(10.0, 20.0)}, ["small", "large"], 100.0) == {}


def test_layers_that_only_lose_next_to_integers_are_a_set_of_their_own():
    found = promising({"a": times(2.0, 1.0), "b": times(2.0, 2.2, 1.0)}, ["a", "b", "c"], 9.0)
    assert [(name, sorted(each.layers)) for name, each in found.items()] == [
        ("float", ["a"]),
        ("float alone", ["a", "b"]),
        ("all float", ["a", "b", "c"]),
    ]
    assert found["all float"].layers["c"] is None


def test_all_in_float_is_not_tried_where_integers_win_in_sum():
    assert list(promising({"a": times(2.0, 1.0), "b": times(2.0, 8.0)}, ["a", "b"], 9.0)) == ["float"]


def test_all_in_float_is_tried_where_integers_win_next_to_nothing():
    measured = {"a": times(1.0, 1.1)}
    assert promising(measured, ["a"], 4.0)["all float"].layers == {"a": None}
    assert promising(measured, ["a"], 1.5) == {}
    assert promising(measured, ["a", "unmeasured"], 4.0) == {}


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ({"integer": 10.0, "few": 8.1, "all": 8.0}, "few"),
        ({"integer": 10.0, "few": 9.0, "all": 8.0}, "all"),
        ({"integer": 10.0, "few": 9.6, "all": 9.7}, "integer"),
        ({"integer": 10.0, "few": 12.0, "all": 9.0}, "all"),
        ({}, "integer"),
    ],
)
def test_the_fewest_layers_that_make_the_model_about_as_fast_as_any(whole, expected):
    candidates = {"all": Candidate("float", {"a": None, "b": None}), "few": Candidate("float", {"a": None})}
    assert picked(candidates, whole) == expected


def test_reasons_name_the_times_of_the_layer_or_of_the_model():
    found = reasons(Candidate("float alone", {"a": times(2.0, 3.0, 1.0), "b": None}), 8.0, 10.0, "a processor")
    assert found == {
        "a": "float is faster here: 1 ms against 2 ms at [1, 8] on a processor",
        "b": "the model is faster in float here: 8 ms against 10 ms on a processor",
    }
