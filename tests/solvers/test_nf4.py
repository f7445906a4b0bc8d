"""NF4: the levels of the paper, the nearest of them, and scales in 8 bits as bitsandbytes has them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import GroupScheme
from qcompile.solvers.nf4 import NF4, double_quantized, dynamic_levels, nearest, nf4
from qcompile.solvers.rtn import rtn


def weights(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)


def test_normal_weights_are_closer_than_with_equal_steps():
    weight = weights(256, 64)
    error, equal = (
        np.square(back - weight).sum() for back in (nf4(weight).weight(64), rtn(weight, GroupScheme()).weight(64))
    )
    assert error < equal


@settings(max_examples=30, deadline=None)
@given(inputs=st.sampled_from([1, 17, 33, 288, 4544]), group_size=st.integers(1, 5000))
def test_every_number_of_inputs_and_every_group_size(inputs, group_size):
    weight = weights(inputs, 3)
    found = nf4(weight, group_size)
    assert found.scale.shape == (-(-inputs // group_size), 3)
    steps = np.abs(weight - found.weight(group_size)) / np.repeat(found.scale, group_size, axis=0)[:inputs]
    assert steps.max() <= np.diff(NF4).max() / 2 * 1.00001


def test_of_two_levels_at_one_distance_the_lower_is_taken():
    middles = (NF4[1:] + NF4[:-1]) / np.float32(2)
    np.testing.assert_array_equal(nearest(middles, NF4), np.arange(15))
    np.testing.assert_array_equal(nearest(np.nextafter(middles, np.float32(2)), NF4), np.arange(1, 16))
    np.testing.assert_array_equal(nearest(NF4, NF4), np.arange(16))


def test_the_dynamic_map_is_that_of_bitsandbytes_to_the_last_bit():
    levels = dynamic_levels()
    assert (levels.shape, levels.dtype, levels[0], levels[-1]) == ((256,), np.float32, levels[0], 1)
    # Of bitsandbytes 0.50.2: sha256 of create_dynamic_map().numpy().tobytes().
    assert (
        hashlib.sha256(levels.tobytes()).hexdigest()
        == "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    )


def fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_indices_and_scales_are_those_of_bitsandbytes():
    # Of bitsandbytes 0.50.2, on a CPU: quantize_4bit(torch.from_numpy(weight.T.copy()), blocksize=64, quant_type="nf4",
    # compress_statistics=True) -> packed, state; dequantize_4bit(packed, state). Nibbles of packed, the high one first.
    found = nf4(weights(576, 320), 64)
    assert fingerprint(found.indices) == "c4e3f97074ad39b0"
    scales = double_quantized(np.ascontiguousarray(found.scale.T))
    assert fingerprint(scales.indices) == "cedea7cfc7f29321"
    assert fingerprint(scales.scale) == "eb5c1e2dda6783a7"
    assert float(scales.offset).hex() == "0x1.4d94ba0000000p+1"
    values = np.repeat(scales.values().reshape(320, 9).T, 64, axis=0)
    assert fingerprint(NF4[found.indices] * values) == "42ab45f45c11989f"


def test_numbers_are_rounded_to_steps_before_the_nearest_level_is_looked_up():
    # state.absmax of bitsandbytes 0.50.2 for scales -1, 1 and these, whose mean is 0: -8e-5 becomes the level
    # -6.625e-5, with -8.875e-5 nearer, and 0 the level above it.
    scale = np.array([-1, 1, -8.0e-5, 8.0e-5, 0], np.float32)
    np.testing.assert_array_equal(double_quantized(scale).indices, [0, 255, 121, 133, 131])


def test_a_block_of_equal_scales_has_index_0():
    found = double_quantized(np.full(300, 0.5, np.float32))
    np.testing.assert_array_equal(found.indices, 0)
    np.testing.assert_array_equal(found.values(), np.float32(0.5))


def test_scales_in_8_bits_are_close_in_blocks_of_256():
    scale = np.random.default_rng(0).uniform(1, 3, 1000).astype(np.float32)
    found = double_quantized(scale)
    assert found.scale.shape == (4,)
    assert found.offset == pytest.approx(scale.mean())
    assert np.abs(found.values() - scale).max() < 0.02
    last = scale[768:]
    assert found.scale[3] == np.abs(last - found.offset).max()


def test_zeros_and_broken_numbers():
    weight = weights(64, 3)
    weight[:32, 0], weight[3, 1], weight[4, 2] = 0, np.nan, np.inf
    back = nf4(weight, 32).weight(32)
    assert np.isfinite(back).all()
    np.testing.assert_array_equal(back[:32, 0], 0)
    assert back[3, 1] == 0
    np.testing.assert_array_equal(double_quantized(np.zeros(300, np.float32)).values(), 0)
    assert double_quantized(np.zeros(0, np.float32)).values().size == 0
