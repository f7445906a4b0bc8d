"""The error of a scale against convolutions computed by torch, and what the search finds with it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.scheme import Scheme
from qcompile.solvers import smoothing
from qcompile.solvers.affine import dequantize, quantize_dequantize, quantize_weight, scale_and_zero_point
from qcompile.solvers.smoothing_convolutions import Convolutions, Reading
from qcompile.solvers.smoothing_families import LARGEST_FACTOR

STATIC, PER_CHANNEL = Scheme("uint8", sym=False), Scheme("int8", "per_channel")
SCHEMES = [(STATIC, PER_CHANNEL), (Scheme("int8"), Scheme("int8", "per_tensor"))]
CHANNELS = 12


def reading(rows, *kernels, count=10**6):
    rows = np.asarray(rows, np.float32)
    weights = [np.asarray(kernel, np.float32) for kernel in kernels]
    return Reading(rows, rows.min(axis=0), rows.max(axis=0), count, weights)


def problem(*readings, activations=STATIC, weights=PER_CHANNEL, groups=None):
    ties = np.arange(readings[0].rows.shape[1]) if groups is None else np.asarray(groups)
    return Convolutions(readings, activations, weights, ties)


def picture(seed, outliers):
    """Pixels [positions, channels] that are independent, as the measure assumes, and the image [1, channels, h, w]."""
    rows = np.random.default_rng(seed).normal(size=(40 * 40, CHANNELS)).astype(np.float32)
    rows[:, list(outliers)] *= 50
    return rows, rows.T.reshape(1, CHANNELS, 40, 40)


def convolution_error(image, weight, scale, groups, schemes):
    """Relative squared error of a whole quantized convolution, by torch."""
    factors = scale.reshape(groups, -1).repeat(len(weight) // groups, axis=0)[:, :, None, None]
    scaled = image / scale[:, None, None]
    seen = quantize_dequantize(scaled, *scale_and_zero_point(scaled.min(), scaled.max(), schemes[0]), schemes[0])
    axis = 0 if schemes[1].granularity == "per_channel" else None
    rounded = dequantize(*quantize_weight(weight * factors, schemes[1], axis), axis)
    outputs = [
        torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), groups=groups).numpy()
        for x, w in ((image, weight), (seen, rounded))
    ]
    return float(np.square(outputs[1] - outputs[0]).sum() / np.square(outputs[0]).sum())


@pytest.mark.parametrize("schemes", SCHEMES)
@pytest.mark.parametrize("groups", [1, 3, CHANNELS])
def test_the_error_of_contributions_is_that_of_the_convolution(groups, schemes):
    rows, image = picture(0, [4, 7])
    weight = np.random.default_rng(1).normal(size=(CHANNELS, CHANNELS // groups, 3, 3)).astype(np.float32)
    kernel = weight.reshape(groups, CHANNELS // groups, CHANNELS // groups, 9).transpose(0, 2, 1, 3)
    measure = problem(reading(rows, kernel), activations=schemes[0], weights=schemes[1]).error(10**6)
    for scale in (
        np.ones(CHANNELS, np.float32),
        np.where(np.isin(np.arange(CHANNELS), [4, 7]), 7, 1).astype(np.float32),
    ):
        assert measure(scale) == pytest.approx(convolution_error(image, weight, scale, groups, schemes), rel=0.25)


@pytest.mark.parametrize("schemes", SCHEMES)
def test_search_removes_planted_outliers_and_is_no_worse_than_the_paper(schemes):
    for seed in range(4):
        rows, _ = picture(seed, [2, 9])
        kernel = np.random.default_rng(seed).normal(size=(1, CHANNELS, 20, 9))
        kernel[:, [2, 9]] /= 50
        one = problem(reading(rows, kernel), activations=schemes[0], weights=schemes[1])
        found = smoothing.search(one)
        assert found.error < 0.05 * found.error_without
        assert found.error <= min(smoothing.by_alpha(one, alpha).error for alpha in (0.25, 0.5, 0.75)) * 1.01


def test_two_values_count_by_their_own_range():
    rows, _ = picture(0, [3])
    kernel = np.random.default_rng(1).normal(size=(1, CHANNELS, 8, 1))
    small, large = reading(rows, kernel), reading(rows * 1000, kernel * 1000)
    together, alone = problem(small, large), problem(small)
    for pair in zip(together.magnitudes().typical, alone.magnitudes().typical, strict=True):
        np.testing.assert_allclose(pair[0] / pair[0].max(), pair[1] / pair[1].max(), rtol=1e-5)
    scale = smoothing.search(together).scale
    assert together.error(64)(scale) == pytest.approx(alone.error(64)(scale), rel=1e-3)


def test_tied_channels_get_one_factor():
    rows, _ = picture(0, [3])
    kernel = np.random.default_rng(1).normal(size=(1, CHANNELS, 8, 9))
    tied = problem(reading(rows, kernel), groups=np.arange(CHANNELS) // 2)
    for found in (smoothing.search(tied), smoothing.by_alpha(tied, 0.5)):
        np.testing.assert_array_equal(found.scale[::2], found.scale[1::2])
        assert found.scale.max() > found.scale.min()


def test_a_scale_that_fits_few_positions_is_checked_on_the_other_half():
    rows = np.random.default_rng(0).standard_t(2, size=(32, CHANNELS))
    kernel = np.random.default_rng(1).normal(size=(1, CHANNELS, 8, 1))
    few, many = (problem(reading(rows, kernel, count=count)) for count in (32, 10**6))
    assert few.surprise == 0.5
    assert many.surprise < 1e-4
    assert smoothing.Score(few)(None) > smoothing.Score(many)(None)


def test_nothing_to_quantize_is_left_alone():
    found = smoothing.search(problem(reading(np.zeros((8, 3)), np.ones((1, 3, 2, 9)))))
    np.testing.assert_array_equal(found.scale, 1)
    assert found.gain == 0


elements = st.floats(-(2.0**60), 2.0**60, width=32) | st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e-40])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_scale_is_finite_and_no_worse_than_none(data):
    groups, inputs, outputs, taps = (data.draw(st.integers(1, 3)) for _ in range(4))
    rows = data.draw(hnp.arrays(np.float32, (data.draw(st.integers(1, 6)), groups * inputs), elements=elements))
    kernel = data.draw(hnp.arrays(np.float32, (groups, inputs, outputs, taps), elements=elements))
    with np.errstate(all="ignore"):
        found = smoothing.search(problem(reading(rows, kernel)))
    assert np.isfinite(found.scale).all()
    assert (found.scale >= 1 / LARGEST_FACTOR).all()
    assert (found.scale <= LARGEST_FACTOR).all()
    assert not found.error > found.error_without
