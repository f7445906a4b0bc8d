"""What a graph decides on, what has to be seen for that, and what is known from it."""

from __future__ import annotations

import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.reference_ties import behind_jumps, exact_values, loose_decisions, unseen_jump
from tests.reference_cases import CASES, PAIR, case


def shaped(text: str):
    return ShapeInferencePass(strict_mode=False)(case(text)).model


def loose(text: str, *seen: str) -> list[str]:
    return [value.name for value in loose_decisions(shaped(text), seen)]


@pytest.mark.parametrize(
    ("text", "decided_on"),
    [
        ("y = Floor(x)", []),
        ("e = Exp(x) y = Floor(e)", ["e"]),
        ("e = Exp(x) r = Relu(e) t = Transpose(r) y = ArgMax(t)", ["t"]),
        ("e = Exp(x) f = Log(x) y = Less(e, f)", ["e", "f"]),
        ("e = Exp(x) i = Cast<to = 7>(e) y = Cast<to = 1>(i)", ["e"]),
        ("e = Exp(x) y = Cast<to = 11>(e)", []),
        ("e = Exp(x) i = Shape(e) y = ArgMax(i)", []),
        ("i = Shape(x) f = Cast<to = 1>(i) y = Ceil(f)", []),
        ("i = Shape(x) f = Cast<to = 10>(i) g = Cast<to = 1>(f) y = Ceil(g)", ["g"]),
        ("e = Exp(x) i = Shape(x) y = CastLike(e, i)", ["e"]),
        (f"{PAIR} y = Floor(d)", ["d"]),
    ],
)
def test_floats_that_are_decided_on(text: str, decided_on: list[str]) -> None:
    assert loose(text) == decided_on


def test_what_follows_without_rounding_need_not_be_seen() -> None:
    assert loose(f"{PAIR} r = Relu(d) y = Floor(r)", "q") == []
    assert loose(f"{PAIR} r = Relu(d) u = Add(r, s) y = Floor(u)", "q") == ["u"]
    assert loose("e = Exp(x) f = Floor(e) g = Ceil(f) y = Round(g)", "e") == []


def test_a_value_that_is_seen_follows_from_those_before_it_all_the_same() -> None:
    model = shaped("e = Exp(x) y = Relu(e)")
    names = {value.name for value in exact_values(model, ["e"])}
    assert "y" in names
    assert "e" not in names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CASES["Cast"].replace("(x)", "(e)"), "a Cast to integers"),
        ("y = Floor(e)", "Floor makes another number"),
        ("i = ArgMax(e) y = Cast<to = 1>(i)", "the place is used"),
        ("y = ArgMax(e)", None),
        (CASES["TopK"].replace("(x,", "(e,"), "the place is used"),
        (CASES["TopK: smallest"].replace("(x,", "(e,"), None),
        ("n = Less(e, s) y = Where(n, x, e)", None),
    ],
)
def test_answers_that_others_use_need_what_they_are_made_of(text: str, reason: str | None) -> None:
    model = shaped(f"e = Exp(x) {text}")
    found = unseen_jump(model, ())
    assert found is None if reason is None else found is not None and reason in found and "does not show" in found
    assert unseen_jump(model, ["e"]) is None


def test_what_is_behind_an_answer_to_a_tie() -> None:
    branch = "<then_branch = g () => (t) { t = Neg(f) }, else_branch = o () => (u) { u = Neg(x) }>"
    model = shaped(
        "e = Exp(x) f = Floor(e) n = Less(e, s) h = Where(n, e, s) p = Floor(x) m = ReduceMax<keepdims = 0>(x) "
        f"b = Less(m, s) i = If(b){branch} y = Add(i, h)"
    )
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert {value.name for value in behind_jumps(model, [values["e"]])} == {"f", "i", "y"}
    assert behind_jumps(model, [values["h"]]) == frozenset()
