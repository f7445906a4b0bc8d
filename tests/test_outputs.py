"""Outputs side by side: padded positions do not count, and the cosine is that of the output that is farthest."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibration_masks import PaddingMask
from qcompile.outputs import cosine, farthest_cosine, without_padding


def test_padding_does_not_count():
    outputs = [{"y": np.arange(12.0).reshape(2, 2, 3), "z": np.zeros(5)}]
    sample = [{"mask": np.array([[1, 0], [1, 1]])}]
    (kept,) = without_padding(outputs, sample, [PaddingMask("mask")])
    assert kept["y"].tolist() == [[0, 1, 2], [6, 7, 8], [9, 10, 11]]
    assert kept["z"].shape == (5,)


def test_the_output_that_is_farthest_counts_as_the_mean_over_samples():
    first, second = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    before = [{"a": first, "b": first, "none": np.zeros(0)}] * 2
    after = [{"a": first, "b": second, "none": np.zeros(0)}, {"a": first, "b": first, "none": np.zeros(0)}]
    assert farthest_cosine(before, after) == pytest.approx((1 + 2**-0.5) / 2)
    assert farthest_cosine([{"none": np.zeros(0)}], [{"none": np.zeros(0)}]) == 1


def test_an_infinity_of_one_model_alone_is_as_far_as_it_gets():
    plain, masked = np.ones(4), np.array([1.0, 1.0, -np.inf, np.nan])
    assert cosine(plain, masked) == 0
    assert farthest_cosine([{"y": plain}], [{"y": masked}]) == 0
    assert cosine(masked, masked * np.array([2, 2, 1, 1])) == pytest.approx(1)
    assert cosine(masked, -masked) == 0
