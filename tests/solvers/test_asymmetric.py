"""The weight that makes up for errors in front of it: least squares, and better once it is rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.asymmetric import asymmetric_target
from qcompile.solvers.gptq_groups import gptq_groups
from qcompile.solvers.grouped import Evidence
from qcompile.solvers.rtn import rtn


def case(inputs: int, outputs: int, rows: int = 600, noise: float = 0.2) -> tuple[np.ndarray, ...]:
    """What the linear reads now, what it would read in float, and its weight."""
    rng = np.random.default_rng(inputs)
    exact = rng.normal(size=(rows, inputs)) @ (np.eye(inputs) + 0.3 * rng.normal(size=(inputs, inputs)) / inputs**0.5)
    # Errors of layers in front go along with what they compute.
    read = exact + noise * exact @ rng.normal(size=(inputs, inputs)) / inputs**0.5
    weight = rng.normal(size=(inputs, outputs))
    return tuple(array.astype(np.float32) for array in (read, exact, weight))


def moments(read: np.ndarray, exact: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return read.T @ read / len(read), read.T @ ((exact - read) @ weight) / len(read)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8))
def test_it_is_the_least_squares_solution(inputs: int, outputs: int) -> None:
    read, exact, weight = case(inputs, outputs)
    found = asymmetric_target(weight, *moments(read, exact, weight), damp_percent=1e-9)
    expected = np.linalg.lstsq(read.astype(np.float64), exact.astype(np.float64) @ weight, rcond=None)[0]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("solver", [rtn, gptq_groups])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounded_it_is_closer_to_float_than_the_float_weight_rounded(solver, bits: int) -> None:
    """On rows that the solver did not see."""
    read, exact, weight = case(64, 24, rows=1200)
    seen, held = slice(0, 600), slice(600, None)
    gram, lacks = moments(read[seen], exact[seen], weight)
    scheme, known = GroupScheme(bits, 16), Evidence(gram.astype(np.float32))

    def error(aim: np.ndarray) -> float:
        return float(np.square(read[held] @ solver(aim, scheme, known).weight(16) - exact[held] @ weight).mean())

    assert error(asymmetric_target(weight, gram, lacks, 0.01)) < 0.9 * error(weight)


def test_where_nothing_is_lacking_or_seen_the_weight_stays() -> None:
    read, exact, weight = case(24, 5)
    gram, lacks = moments(read, exact, weight)
    np.testing.assert_array_equal(asymmetric_target(weight, gram, np.zeros_like(lacks), 0.01), weight)
    np.testing.assert_array_equal(asymmetric_target(weight, np.zeros_like(gram), lacks, 0.01), weight)
    for broken in (np.nan, np.inf):
        holed = gram.copy()
        holed[3, 3] = broken
        np.testing.assert_array_equal(asymmetric_target(weight, holed, lacks, 0.01), weight)
        np.testing.assert_array_equal(asymmetric_target(weight, gram, np.full_like(lacks, broken), 0.01), weight)


def test_moments_without_full_rank_need_damping() -> None:
    """Of 40 inputs, 10 rows: the weight moves only where they say something."""
    read, exact, weight = case(40, 5, rows=10)
    gram, lacks = moments(read, exact, weight)
    found = asymmetric_target(weight, gram, lacks, 0.01)
    assert np.square(read @ found - exact @ weight).sum() < 0.1 * np.square((read - exact) @ weight).sum()
    unseen = np.linalg.svd(read)[2][10:]
    np.testing.assert_allclose(unseen @ found, unseen @ weight, atol=1e-3)
    np.testing.assert_array_equal(asymmetric_target(weight, np.ones_like(gram), lacks, 0.0), weight)
