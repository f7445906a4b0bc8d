"""Rounding to nearest in groups: what range it represents, what the search gains, every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.rtn import rtn


def weights(inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, size=(inputs, outputs)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.sampled_from([1, 17, 33, 288, 4544]),
    group_size=st.one_of(st.just(-1), st.integers(1, 5000)),
    bits=st.integers(1, 8),
    sym=st.booleans(),
    range_grid=st.sampled_from([0, 5]),
)
def test_every_number_of_inputs_and_every_group_size(inputs, group_size, bits, sym, range_grid):
    weight, scheme = weights(inputs, 3), GroupScheme(bits, group_size, sym)
    found = rtn(weight, scheme, range_grid=range_grid)
    assert found.integers.shape == weight.shape
    assert found.scale.shape == (scheme.groups(inputs), 3)
    assert (found.zero_point is None) == sym
    assert found.integers.min() >= scheme.range[0]
    assert found.integers.max() <= scheme.range[1]
    scale = np.abs(np.repeat(found.scale, scheme.size(inputs), axis=0)[:inputs])
    if not range_grid:
        # Half a step; a whole one at the far end of an asymmetric range, and of the sign without an extreme.
        assert (np.abs(found.weight(group_size) - weight) <= 1.001 * scale * (1 if bits > 1 or not sym else 2)).all()


@pytest.mark.parametrize("extreme", [4.0, -4.0])
def test_a_symmetric_scale_puts_the_extreme_on_the_smallest_integer(extreme):
    found = rtn(np.array([[extreme], [0.5 * extreme], [-0.5 * extreme]], np.float32), GroupScheme(4, -1))
    np.testing.assert_array_equal(found.integers.ravel(), [-8, -4, 4])
    assert found.scale == -extreme / 8


def test_asymmetric_ranges_contain_zero():
    found = rtn(np.array([[1.0], [4.0]], np.float32), GroupScheme(4, -1, sym=False))
    np.testing.assert_array_equal(found.integers.ravel(), [4, 15])
    assert found.zero_point == 0


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_searched_scale_has_a_smaller_error_under_the_hessian(bits, sym):
    weight, scheme = weights(256, 40), GroupScheme(bits, 64, sym)
    energy = np.geomspace(0.01, 10, 256).astype(np.float32)
    seen = Evidence(np.diag(energy))

    def error(range_grid: int) -> float:
        return float(
            (energy[:, None] * np.square(rtn(weight, scheme, seen, range_grid=range_grid).weight(64) - weight)).sum()
        )

    assert error(20) < (1 if bits > 4 else 0.95) * error(0)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("range_grid", [0, 5])
def test_broken_numbers_are_defined(sym, range_grid):
    weight = weights(64, 5)
    weight[3, 0], weight[4, 1], weight[5, 2], weight[:, 3] = np.nan, np.inf, -np.inf, 0
    weight[:, 4] = np.inf
    found = rtn(weight, GroupScheme(4, 32, sym), range_grid=range_grid)
    back = found.weight(32)
    assert np.isfinite(found.scale).all()
    assert np.isfinite(back).all()
    assert back[3, 0] == 0
    assert back[4, 1] > 0.9 * np.abs(weight[5:, 1]).max()
    assert back[5, 2] < -0.9 * np.abs(weight[6:, 2]).max()
    np.testing.assert_array_equal(back[:, 3], 0)
    assert (back[:, 4] > 0).all()


def test_seen_data_that_says_nothing_weighs_every_input_the_same():
    weight = weights(64, 5)
    expected = rtn(weight, GroupScheme(), range_grid=5).scale
    for gram in (np.zeros((64, 64)), np.full((64, 64), np.nan), np.diag(np.full(64, np.inf))):
        np.testing.assert_array_equal(rtn(weight, GroupScheme(), Evidence(gram), range_grid=5).scale, expected)
