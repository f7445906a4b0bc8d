from __future__ import annotations

import numpy as np
import pytest

from qcompile.scheme import PER_CHANNEL_INT8
from qcompile.solvers import broken_numbers
from qcompile.solvers.affine import quantize_weight

TINY, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ([], ""),
        ([0.0, 0.0], ""),
        ([1.0, -2.0], ""),
        ([1.0, 1e-42], ""),
        ([1.0, np.nan], "NaN or infinity"),
        ([1.0, -np.inf], "NaN or infinity"),
        ([0.0, -126 * TINY], "too small"),
        ([0.0, -127 * TINY], ""),
        ([0.49 * LARGEST, 0.0], ""),
        ([0.0, -0.51 * LARGEST], "beyond half of the largest"),
    ],
    ids=str,
)
def test_weights(elements, reason):
    found = broken_numbers.of_weight(np.array(elements, np.float32))
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_smallest_weight_that_is_quantized_has_all_levels():
    weight = np.arange(-127, 128, dtype=np.float32)[:, None] * TINY
    assert broken_numbers.of_weight(weight) == ""
    assert set(quantize_weight(weight, PER_CHANNEL_INT8, 1)[0][:, 0].tolist()) == set(range(-127, 128))


def test_a_bias():
    assert broken_numbers.of_bias(None) == broken_numbers.of_bias(np.array([1e38], np.float32)) == ""
    assert "NaN or infinity" in broken_numbers.of_bias(np.array([0, np.inf], np.float32))


@pytest.mark.parametrize(("mean", "largest"), [(np.nan, 1.0), (0.0, np.inf), (np.inf, 1.0)])
def test_an_activation_that_is_not_finite(mean, largest):
    sound = np.ones(2, np.float32)
    assert broken_numbers.of_activation(sound, sound) == ""
    assert "NaN or infinity" in broken_numbers.of_activation(np.array([0, mean]), np.array([1, largest]))


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (0, 0, "is zero in all"),
        (0, 254 * TINY, "too small"),
        (-254 * TINY, 0, "too small"),
        (-255 * TINY, 0, ""),
        (0, 5, ""),
    ],
)
def test_a_range(low, high, reason):
    found = broken_numbers.of_range(float(low), float(high))
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("activation", "weight", "count", "reason"),
    [
        (5.0, 0.3, 768, ""),
        (1e33, 0.3, 1, ""),
        (1e33, 0.3, 100, "beyond float32"),
        (1e20, 1e18, 1, "beyond float32"),
        (0.0, 0.3, 10, ""),
        (1.0, 0.0, 10, ""),
        (1e-30, 1e-5, 10, "below the normal numbers"),
        (1e-30, 1.0, 10, ""),
        (1e-35, 1e10, 10, ""),
        (1e-37, 1e10, 10, "below the normal numbers"),
    ],
)
def test_sums_of_products(activation, weight, count, reason):
    found = broken_numbers.of_products(activation, weight, count)
    assert reason in found
    assert bool(found) == bool(reason)
