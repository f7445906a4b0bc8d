"""HQQ: closer than the nearest without data, for every number of bits, and defined on every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.hqq import _PENALTY, _take_outliers, hqq
from qcompile.solvers.rtn import rtn


def weights(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, size=(inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_beats_the_nearest(bits, sym):
    weight, scheme = weights(256, 40), GroupScheme(bits, 64, sym)

    def error(found):
        return float(np.square(found.weight(64) - weight).sum())

    assert error(hqq(weight, scheme)) < (0.97 if bits < 5 else 1) * error(rtn(weight, scheme))
    assert error(hqq(weight, scheme)) < error(hqq(weight, scheme, iterations=0))


@pytest.mark.parametrize("sym", [True, False])
def test_energies_of_inputs_weigh_their_errors(sym):
    weight, scheme = weights(256, 40), GroupScheme(3, 64, sym)
    squares = np.random.default_rng(1).chisquare(1, 256).astype(np.float32) ** 2

    def error(found):
        return float((np.square(found.weight(64) - weight) * squares[:, None]).sum())

    known = error(hqq(weight, scheme, Evidence(squares=squares)))
    assert known < 0.9 * error(hqq(weight, scheme))
    assert known <= error(rtn(weight, scheme, Evidence(squares=squares), range_grid=5))


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.sampled_from([1, 17, 33, 288, 4544]),
    group_size=st.one_of(st.just(-1), st.integers(1, 5000)),
    bits=st.integers(1, 8),
    sym=st.booleans(),
)
def test_every_number_of_inputs_and_every_group_size(inputs, group_size, bits, sym):
    weight, scheme = weights(inputs, 3), GroupScheme(bits, group_size, sym)
    found = hqq(weight, scheme)
    assert found.scale.shape == (scheme.groups(inputs), 3)
    assert scheme.range[0] <= found.integers.min() <= found.integers.max() <= scheme.range[1]
    error, nearest = (np.square(each.weight(group_size) - weight).sum() for each in (found, rtn(weight, scheme)))
    assert error <= 1.0001 * nearest + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    group_size=st.sampled_from([32, 64, 100]),
    tail=st.integers(1, 31),
    bits=st.integers(2, 4),
    sym=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_last_group_is_solved_as_if_it_were_alone_however_short(group_size, tail, bits, sym, seed):
    weight = np.random.default_rng(seed).standard_t(4, size=(group_size + tail, 8)).astype(np.float32) + 1
    together = hqq(weight, GroupScheme(bits, group_size, sym)).weight(group_size)[group_size:]
    alone = hqq(weight[group_size:], GroupScheme(bits, -1, sym)).weight(-1)
    errors = [np.square(each - weight[group_size:]).sum(axis=0) for each in (together, alone)]
    np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1), st.floats(_PENALTY, 1e6))
def test_what_is_left_beside_outliers_never_moves_an_integer_zero_point(errors, penalty):
    left = np.array(errors, np.float32)
    _take_outliers(left, penalty)
    assert np.abs(left).max() <= 1.001 * penalty ** (-1 / 1.3) < 0.18
    assert (np.abs(left) <= np.abs(np.float32(errors))).all()


def test_groups_of_zeros_and_broken_numbers():
    weight = weights(64, 4)
    weight[:32, 0], weight[3, 1], weight[4, 2] = 0, np.nan, np.inf
    back = hqq(weight, GroupScheme(4, 32)).weight(32)
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(back[:32, 0], 0)
    assert back[3, 1] == 0
