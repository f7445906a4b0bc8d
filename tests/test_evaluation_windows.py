"""Windows score every token once, with what the stride leaves before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import RecipeError
from qcompile.evaluation_windows import Window, strided_windows


@given(st.integers(0, 60), st.integers(2, 20), st.data())
def test_every_token_is_scored_once_with_enough_before_it(count: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size - 1))
    scored = []
    for window in strided_windows(count, size, stride):
        assert 0 <= window.begin < window.first < window.end <= count
        assert window.end - window.begin <= size
        assert window.first - window.begin >= min(size - stride, window.first)
        scored += range(window.first, window.end)
    assert scored == list(range(1, count))


def test_windows_are_those_of_the_guide() -> None:
    assert list(strided_windows(11, 6, 2)) == [Window(0, 6, 1), Window(2, 8, 6), Window(4, 10, 8), Window(6, 11, 10)]


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (0, 1), (8, 8), (8, 0), (8, -1), (8, 9)])
def test_sizes_and_strides_that_leave_nothing_before_a_token_are_refused(size: int, stride: int) -> None:
    with pytest.raises(RecipeError, match=r"Give \d"):
        strided_windows(10, size, stride)
