"""Signal-to-quantization-noise ratio."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.scheme import Scheme
from qcompile.solvers.sqnr import as_quantized, sqnr_db


def test_a_tenth_of_the_amplitude_is_20_db():
    signal = np.ones(10)
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20)


def test_equal_is_infinite_and_noise_on_silence_is_minus_infinity():
    assert sqnr_db(np.ones(3), np.ones(3)) == float("inf")
    assert sqnr_db(np.zeros(3), np.zeros(3)) == float("inf")
    assert sqnr_db(np.zeros(3), np.ones(3)) == float("-inf")


def test_a_static_range_saturates_and_a_dynamic_one_does_not():
    rows = np.array([[1.0, -2.0], [100.0, 50.0]], np.float32)
    static = as_quantized(rows, (-2.0, 2.0), Scheme("int8"))
    assert static.max() == pytest.approx(2.0)
    per_token = as_quantized(rows, (-2.0, 2.0), Scheme("int8", "per_token", dynamic=True))
    np.testing.assert_allclose(per_token, rows, rtol=0.01)
