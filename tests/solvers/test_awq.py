"""AWQ: channels that carry much are spared, and no scale is worse than none."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.scheme import GroupScheme
from qcompile.solvers.awq import awq


def problem(inputs: int = 128) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, inputs)).astype(np.float32)
    rows[:, ::16] *= 20
    return rows, generator.normal(size=(inputs, 40)).astype(np.float32)


@pytest.mark.parametrize("scheme", [GroupScheme(3, 64), GroupScheme(4, 32, sym=False), GroupScheme(4, -1)], ids=str)
def test_channels_that_carry_much_are_spared(scheme):
    rows, weight = problem()
    found = awq(rows, [weight, weight[:, :7]], scheme, np.arange(128))
    assert found.error < 0.9 * found.error_without
    assert found.scale[::16].min() > 1.2 * np.delete(found.scale, np.s_[::16]).max()


def test_tied_channels_share_a_scale():
    rows, weight = problem()
    scale = awq(rows, [weight], GroupScheme(), np.repeat(np.arange(8), 16)).scale
    assert len(np.unique(scale)) <= 8
    np.testing.assert_array_equal(scale.reshape(8, 16), scale[::16, None].repeat(16, axis=1))


@pytest.mark.parametrize("fill", [0, np.nan])
def test_rows_that_say_nothing_give_no_scale(fill):
    _, weight = problem()
    found = awq(np.full((5, 128), fill, np.float32), [weight], GroupScheme(), np.arange(128))
    np.testing.assert_array_equal(found.scale, 1)


def test_a_channel_that_is_always_zero_has_the_scale_of_the_smallest():
    rows, weight = problem()
    rows[:, 3] = 0
    found = awq(rows, [weight], GroupScheme(3, 64), np.arange(128))
    assert found.scale[3] == found.scale.min() > 0
