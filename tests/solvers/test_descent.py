"""Descent: scales and integers that cannot be bettered one by one, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.solvers.descent import fitted_scale, set_integers


def problem(inputs: int = 10, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, inputs)) @ generator.normal(size=(inputs, inputs))
    weight = generator.normal(size=(inputs, outputs)).astype(np.float32)
    return weight, generator.integers(-4, 4, (inputs, outputs)).astype(np.float32), (x.T @ x / 40).astype(np.float32)


def loss(weight: np.ndarray, back: np.ndarray, gram: np.ndarray) -> np.ndarray:
    error = (back - weight).astype(np.float64)
    return (error * (gram @ error)).sum(axis=0)


def test_scales_are_those_of_least_squares():
    weight, steps, gram = problem()
    steps[:4, 1] = 0
    start = np.full((3, 3), 0.25, np.float32)
    found = fitted_scale(weight, steps, start, gram, 4)
    root = np.linalg.cholesky(gram.astype(np.float64)).T
    for column in range(3):
        basis = np.zeros((10, 3))
        for group in range(3):
            basis[4 * group : 4 * group + 4, group] = steps[4 * group : 4 * group + 4, column]
        expected = np.linalg.lstsq(root @ basis, root @ weight[:, column], rcond=None)[0]
        used = basis.any(axis=0)
        np.testing.assert_allclose(found[used, column], expected[used], rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found[~used, column], 0.25)


@pytest.mark.parametrize("with_zero", [False, True])
def test_the_last_integer_that_was_set_cannot_be_bettered_and_none_made_it_worse(with_zero):
    weight, integers, gram = problem(70)
    scale = np.full(weight.shape, 0.4, np.float32)
    zero = np.full(weight.shape, 1.0, np.float32) if with_zero else None

    def back(numbers: np.ndarray) -> np.ndarray:
        return (numbers - (1 if with_zero else 0)) * scale

    before, order = loss(weight, back(integers), gram), np.random.default_rng(1).permutation(70)
    set_integers(weight, integers, scale, zero, gram, order, (-4, 3))
    after = loss(weight, back(integers), gram)
    assert (after < before).all()
    for number in range(-4, 4):
        other = integers.copy()
        other[order[-1]] = number
        assert (loss(weight, back(other), gram) >= after * (1 - 1e-5)).all()
    assert integers.min() >= -4
    assert integers.max() <= 3
