from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.scheme import PER_CHANNEL_INT8
from qcompile.solvers.affine import dequantize, quantize_weight
from qcompile.solvers.bias_correction import output_shift


@pytest.mark.parametrize("seed", range(4))
def test_correction_beats_none_on_new_data_where_inputs_have_a_mean(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(64, 32)).astype(np.float32)
    rounded = dequantize(*quantize_weight(weight, PER_CHANNEL_INT8, 1), axis=1)
    rows = (np.abs(generator.normal(size=(400, 64))) + 1).astype(np.float32)
    shift = output_shift(rows[:200] @ weight, rows[:200] @ rounded)
    exact, quantized = rows[200:] @ weight, rows[200:] @ rounded
    assert np.square(quantized - shift - exact).mean() < 0.5 * np.square(quantized - exact).mean()


def test_shift_of_all_rows_is_returned_where_it_carries_over() -> None:
    exact = np.zeros((4, 2), np.float32)
    quantized = np.array([[1, 1], [1, -1], [2, 1], [2, -1]], np.float32)
    np.testing.assert_array_equal(output_shift(exact, quantized), np.array([1.5, 0], np.float32))


@pytest.mark.parametrize("errors", [(3, 3, -1, -1), (1, -1, 2, 2)], ids=["makes it worse", "makes it no better"])
def test_shift_that_does_not_carry_over_is_left_alone(errors: tuple[int, ...]) -> None:
    exact, quantized = np.zeros((4, 1), np.float32), np.array(errors, np.float32)[:, None]
    np.testing.assert_array_equal(output_shift(exact, quantized), [0])


@given(
    st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(1, 4)),
    st.sampled_from([0.0, 1e-40, 1.0, 1e30]),
    st.integers(0, 2**16),
)
def test_every_shape_gives_one_finite_shift_per_output(shape: tuple[int, int, int], size: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    exact, quantized = (generator.normal(size=shape).astype(np.float32) * np.float32(size) for _ in range(2))
    shift = output_shift(exact, quantized)
    assert shift.shape == (shape[0], shape[2])
    assert shift.dtype == np.float32
    assert np.all(np.isfinite(shift))
