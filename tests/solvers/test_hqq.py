"""HQQ: closer than the nearest without data, for every number of bits, and defined on every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.hqq import hqq
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
    assert known <= error(rtn(weight, scheme, Evidence(squares=squares), n_grid=5))


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


def test_groups_of_zeros_and_broken_numbers():
    weight = weights(64, 4)
    weight[:32, 0], weight[3, 1], weight[4, 2] = 0, np.nan, np.inf
    back = hqq(weight, GroupScheme(4, 32)).weight(32)
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(back[:32, 0], 0)
    assert back[3, 1] == 0
