"""Conditions on sizes are computed as Python would, and nothing else is."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from qcompile.backends.triton.size_guards import holds

SIZES = {"x": (6, 4), "w": (7,)}


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("L['x'].size()[0] == ((-1) + L['w'].size()[0])", True),
        ("(L['x'].size()[0] % 4) == 0", False),
        ("4*(L['x'].size()[0] // 4) >= 2", True),
        ("(-1)*L['x'].size()[0] <= -7", False),
        ("2 <= L['x'].size()[1] <= 4", True),
        ("L['w'].size()[0] == min(512, L['w'].size()[0])", True),
        ("not L['x'].size()[0] != 6 and L['x'].size()[1] < 1000000", True),
        ("1 % (L['x'].size()[0] - 6) == 0", False),
        ("L['x'].size()[0] == 5 or L['x'].size()[1] ** 2 == 16", True),
    ],
)
def test_conditions_of_torch(condition: str, found: bool) -> None:
    assert holds(condition, SIZES) == found


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('true')",
        "L['x'].stride()[0] == 1",
        "L['x'].size()[5] == 1",
        "(lambda: 1)()",
        "1.5 < 2",
        "L['x'].size()[0] ==",
        "open('file')",
    ],
)
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(ValueError, match="is no condition on sizes"):
        holds(condition, SIZES)


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        holds("L['y'].size()[0] == 1", SIZES)
