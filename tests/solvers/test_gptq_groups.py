"""GPTQ in groups: better than the nearest under the second moments, each part for itself, and defined on every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.gptq_groups import gptq_groups
from qcompile.solvers.grouped import Evidence, Grouped
from qcompile.solvers.rtn import rtn

SCHEMES = [GroupScheme(bits, 32, sym) for bits in (2, 3, 4, 8) for sym in (True, False)]


def weights(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(5, size=(inputs, outputs)).astype(np.float32)


def moments(inputs: int, rows: int = 0) -> np.ndarray:
    generator = np.random.default_rng(1)
    mixing = generator.normal(size=(inputs, inputs)) * np.exp(generator.normal(size=inputs))
    x = generator.normal(size=(rows or 4 * inputs, inputs)) @ mixing
    return (x.T @ x / len(x)).astype(np.float32)


def loss(weight: np.ndarray, found: Grouped, group_size: int, gram: np.ndarray) -> float:
    error = (found.weight(group_size) - weight).astype(np.float64)
    return float((error * (gram @ error)).sum())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_beats_the_nearest_at_the_same_searched_scales(scheme):
    weight, gram = weights(150, 20), moments(150)
    nearest = loss(weight, rtn(weight, scheme, Evidence(gram), range_grid=10), 32, gram)
    rounding = loss(weight, gptq_groups(weight, scheme, Evidence(gram), sweeps=0), 32, gram)
    descended = loss(weight, gptq_groups(weight, scheme, Evidence(gram), sweeps=2), 32, gram)
    assert rounding < 0.6 * nearest
    assert descended < 0.97 * rounding


def test_falling_order_of_energy_beats_that_of_the_inputs():
    weight, gram, scheme = weights(150, 20), moments(150), GroupScheme(3, 32)
    losses = [
        loss(weight, gptq_groups(weight, scheme, Evidence(gram), desc_act=desc_act), 32, gram)
        for desc_act in (True, False)
    ]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("sym", [True, False])
def test_scales_of_groups_whose_turn_comes_are_those_of_what_has_become_of_them(sym):
    weight, gram, scheme = weights(150, 20), moments(150), GroupScheme(3, 32, sym)
    found = gptq_groups(weight, scheme, Evidence(gram), static_groups=False, sweeps=0)
    static = gptq_groups(weight, scheme, Evidence(gram), desc_act=False, sweeps=0)
    np.testing.assert_array_equal(found.scale[0], static.scale[0])
    assert (found.scale[1:] != static.scale[1:]).any()
    assert loss(weight, found, 32, gram) < 1.05 * loss(weight, static, 32, gram)


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.sampled_from([1, 17, 33, 288]),
    group_size=st.one_of(st.just(-1), st.integers(1, 300)),
    bits=st.integers(1, 8),
    sym=st.booleans(),
    static_groups=st.booleans(),
)
def test_every_number_of_inputs_and_every_group_size(inputs, group_size, bits, sym, static_groups):
    weight, scheme, gram = weights(inputs, 3), GroupScheme(bits, group_size, sym), moments(inputs)
    found = gptq_groups(weight, scheme, Evidence(gram), static_groups=static_groups)
    assert found.scale.shape == (scheme.groups(inputs), 3)
    assert np.isfinite(found.scale).all()
    assert scheme.range[0] <= found.integers.min() <= found.integers.max() <= scheme.range[1]
    nearest = rtn(weight, scheme, Evidence(gram), range_grid=10)
    if static_groups:
        rounding_error = 1e-6 * float((weight * (gram @ weight)).sum())
        assert loss(weight, found, group_size, gram) <= 1.05 * loss(weight, nearest, group_size, gram) + rounding_error


def test_4544_inputs():
    weight, scheme = weights(4544, 2), GroupScheme(4, 100)
    x = np.random.default_rng(2).normal(size=(64, 4544)).astype(np.float32)
    gram = x.T @ x / 64
    found = gptq_groups(weight, scheme, Evidence(gram))
    assert found.scale.shape == (46, 2)
    assert loss(weight, found, 100, gram) < loss(weight, rtn(weight, scheme), 100, gram)


@pytest.mark.parametrize(
    ("gram", "remark"),
    [
        (None, "there are no second moments"),
        *[(gram, "do not factor") for gram in (np.zeros((64, 64)), np.full((64, 64), np.nan), -np.eye(64))],
    ],
    ids=["no data", "zero: no token reached it", "nan", "negative"],
)
def test_what_cannot_be_factored_is_rounded_to_nearest_and_reported(gram, remark):
    weight, scheme = weights(64, 5), GroupScheme()
    found = gptq_groups(weight, scheme, Evidence(None if gram is None else gram.astype(np.float32)))
    nearest = rtn(weight, scheme, range_grid=10)
    assert remark in found.remark
    np.testing.assert_array_equal(found.integers, nearest.integers)
    np.testing.assert_array_equal(found.scale, nearest.scale)


@pytest.mark.parametrize("factor", [1e-18, 1e18])
def test_inputs_of_any_size_give_the_same_integers(factor):
    rows = np.random.default_rng(3).normal(size=(200, 64))
    weight = np.random.default_rng(4).normal(size=(64, 8)).astype(np.float32)
    scheme = GroupScheme(3, 32)
    found, expected = (
        gptq_groups(weight, scheme, Evidence((each.T @ each / len(each)).astype(np.float32)))
        for each in (rows * factor, rows)
    )
    assert (found.integers == expected.integers).mean() > 0.99  # rounded in other places of float32


def test_one_sample_is_enough():
    weight, scheme, gram = weights(64, 5), GroupScheme(4, 32), moments(64, rows=1)
    found = gptq_groups(weight, scheme, Evidence(gram))
    assert found.remark == ""
    assert loss(weight, found, 32, gram) < 0.1 * loss(weight, rtn(weight, scheme), 32, gram)


@pytest.mark.parametrize("sym", [True, False])
def test_groups_of_zeros_and_broken_numbers(sym):
    weight, gram = weights(64, 5), moments(64)
    weight[:32, 0], weight[:, 1], weight[3, 2], weight[4, 3] = 0, 0, np.nan, np.inf
    back = gptq_groups(weight, GroupScheme(4, 32, sym), Evidence(gram)).weight(32)
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(back[:, 1], 0)


def test_uncorrelated_inputs_are_rounded_to_nearest():
    weight, gram = weights(64, 5), np.eye(64, dtype=np.float32)
    found = gptq_groups(weight, GroupScheme(), Evidence(gram), sweeps=0)
    np.testing.assert_array_equal(found.integers, rtn(weight, GroupScheme(), range_grid=10).integers)
