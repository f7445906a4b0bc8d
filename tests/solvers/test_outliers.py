"""Outlier channels: those beyond the threshold, those that pay, and int8 is never worse for the split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qcompile.scheme import ASYMMETRIC_UINT8, PER_CHANNEL_INT8, Scheme
from qcompile.solvers.outliers import Problem, beyond, search

PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
PER_TENSOR = Scheme("int8", "per_tensor")


def problem(
    channels: int = 256, outliers: int = 2, factor: float = 60, seed: int = 0, linears: int = 2, **settings
) -> tuple[Problem, np.ndarray]:
    """Linears whose input has outliers, as planted: their weight rows are as much smaller."""
    rng = np.random.default_rng(seed)
    planted = np.sort(rng.choice(channels, outliers, replace=False))
    gain = np.ones(channels, np.float32)
    gain[planted] = factor
    rows = rng.standard_normal((64, channels)).astype(np.float32) * gain
    weights = [rng.standard_normal((channels, 24)).astype(np.float32) / gain[:, None] for _ in range(linears)]
    seen = {"activations": PER_TOKEN, "weight_scheme": PER_CHANNEL_INT8, "most": channels // 4, **settings}
    return Problem(rows, rows.min(axis=0), rows.max(axis=0), weights, **seen), planted


def reference(one: Problem, channels: np.ndarray) -> float:
    """Vector-wise int8 of section 3.1 of the paper on all but these channels, in float64."""
    others = np.setdiff1d(np.arange(one.rows.shape[1]), channels)
    x = one.rows[:, others].astype(np.float64)
    steps, errors = np.abs(x).max(axis=1, keepdims=True) / 127, []
    for weight in one.weights:
        w = weight[others].astype(np.float64)
        columns = np.abs(w).max(axis=0) / 127
        noise = x @ w - np.rint(x / steps) @ np.rint(w / columns) * steps * columns
        errors.append(np.square(noise).sum() / np.square(one.rows.astype(np.float64) @ weight).sum())
    return float(np.mean(errors))


def test_beyond_a_threshold_means_more_than_it():
    assert beyond(np.array([6.0, 6.1, 0.0, 90.0]), 6.0).tolist() == [1, 3]
    assert beyond(np.zeros(0), 6.0).tolist() == []


@pytest.mark.parametrize("outliers", [1, 2, 6])
def test_the_error_is_that_of_the_papers_arithmetic(outliers):
    one, planted = problem(outliers=outliers)
    for channels in (planted[:0], planted):
        assert one.error(channels) == pytest.approx(reference(one, channels), rel=2e-3)


@settings(max_examples=30, deadline=None)
@given(
    share=st.floats(0.001, 0.01),
    factor=st.floats(20, 100),
    seed=st.integers(0, 2**32 - 1),
    scheme=st.sampled_from([PER_TOKEN, PER_TENSOR]),
)
def test_planted_outliers_in_float_beat_int8_and_leave_the_error_of_none(share, factor, seed, scheme):
    count = max(1, round(share * 256))
    one, planted = problem(outliers=count, factor=factor, seed=seed, activations=scheme)
    none, _ = problem(outliers=count, factor=1, seed=seed, activations=scheme)
    split = one.error(planted)
    assert split < one.error(planted[:0])
    assert split <= 1.1 * none.error(planted[:0])
    found = search(one)
    assert set(planted) <= set(found.channels.tolist())
    assert np.sqrt(found.error) * one.time(found.channels.size) ** 2 <= np.sqrt(split) * one.time(count) ** 2


@settings(max_examples=60, deadline=None)
@given(
    rows=arrays.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(9)), elements=st.floats(-1e6, 1e6, width=32)),
    weight=arrays.arrays(np.float32, (9, 3), elements=st.floats(-1e3, 1e3, width=32)),
    scheme=st.sampled_from([PER_TOKEN, PER_TENSOR, ASYMMETRIC_UINT8]),
    most=st.integers(0, 12),
)
def test_a_search_is_defined_everywhere_and_never_makes_it_worse(rows, weight, scheme, most):
    ends = rows.min(axis=0, initial=0), rows.max(axis=0, initial=0)
    one = Problem(rows, *ends, [weight], scheme, PER_CHANNEL_INT8, most)
    found = search(one)
    assert found.channels.size <= min(most, 9)
    assert found.channels.tolist() == sorted(set(found.channels.tolist()))
    assert found.error <= found.error_without
    assert found.error == one.error(found.channels)
    assert found.error_without == one.error(found.channels[:0])
    largest = np.sort(one.magnitudes)[::-1][: found.channels.size]
    np.testing.assert_array_equal(np.sort(one.magnitudes[found.channels])[::-1], largest)


def test_without_outliers_nothing_is_taken_and_at_most_so_many_are():
    one, _ = problem(factor=1)
    assert search(one).channels.size == 0
    many, planted = problem(outliers=40, most=20)
    assert set(search(many).channels.tolist()) <= set(planted.tolist())
    assert search(dataclasses.replace(many, most=0)).channels.size == 0


def test_time_counts_the_branch_and_each_of_its_inputs():
    one, _ = problem()
    assert one.time(0) == 1
    assert one.time(1) == pytest.approx(1 + 153 / 256)
    assert one.time(11) - one.time(1) == pytest.approx(30 / 256)


def test_errors_of_large_linears_are_of_a_part_that_stands_for_them():
    rng = np.random.default_rng(3)
    rows, weight = rng.standard_normal((700, 32)).astype(np.float32), rng.standard_normal((32, 5000)).astype(np.float32)
    one = Problem(rows, rows.min(axis=0), rows.max(axis=0), [weight], PER_TOKEN, PER_CHANNEL_INT8, 4)
    assert one.error(np.arange(0)) == pytest.approx(reference(one, np.arange(0)), rel=0.1)
