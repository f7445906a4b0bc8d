"""What the comparison of an artifact with its reference forgives: NaN, and numbers below the normal ones."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.verify_artifact import MAX_STEPS, _compare_inside, apart
from qcompile.verify_observed import Outlook
from qcompile.verify_quantizers import Quantized
from tests.backends.portable import parse

ONE = np.array(1.0)


@pytest.mark.parametrize(
    ("expected", "actual", "near"),
    [
        ([np.inf, 1], [np.inf, 1], True),
        ([np.inf, 1], [-np.inf, 1], False),
        ([np.inf, 1], [3e38, 1], False),
        ([1, 1], [np.inf, 1], False),
        ([1, 1], [np.nan, 1], False),
        ([np.nan, 1], [np.nan, 1], True),
        ([np.nan, 1], [0, 1], True),
        ([np.nan, 1], [0, 5], False),
    ],
    ids=str,
)
def test_what_is_not_finite_has_to_be_the_same_but_for_nan(expected, actual, near):
    distance, mean = apart(np.array(expected, np.float32), np.array(actual, np.float32), ONE)
    assert (distance <= MAX_STEPS) is near
    assert mean <= distance


def test_numbers_that_runtimes_take_for_zero_are_forgiven():
    tiny = np.full(4, 1e-36, np.float32)
    assert apart(tiny, 0 * tiny, np.array(1e-38))[0] < MAX_STEPS
    assert apart(1e8 * tiny, 0 * tiny, np.array(1e-30))[0] > MAX_STEPS


def test_a_scale_per_token_has_no_step_finer_than_float32_of_the_largest_token():
    value = Quantized(("x",), "per token")
    steps = value.step("x", np.array([[127.0, 0], [1e-9, 0]], np.float32))
    np.testing.assert_allclose(steps[:, 0], [1, 127 * 2.0**-20])


def test_a_value_that_is_nothing_but_nan_is_named_not_vouched_for():
    outlook = Outlook.of(parse("(float[3] x) => (float[3] y) { y = Exp(x) }"), ())
    arrays = {"y": np.full(3, np.nan, np.float32)}
    found = _compare_inside("runtime", arrays, {"y": np.ones(3, np.float32)}, outlook, dict)
    assert (found.left_out, found.max_steps) == (("y (NaN)",), 0)
    half = {"y": np.array([np.nan, 1, 2], np.float32)}
    assert _compare_inside("runtime", half, half, outlook, dict).left_out == ()
