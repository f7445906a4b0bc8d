"""GPTQ beats rounding to nearest on the data that it saw, and is defined on every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.scheme import Scheme
from qcompile.solvers.affine import dequantize, quantize_weight
from qcompile.solvers.gptq import factored, gptq, grouped_gptq

PER_CHANNEL = Scheme("int8", "per_channel")
PER_TENSOR = Scheme("int8", "per_tensor")


def correlated_rows(channels: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(channels, channels)) * np.exp(generator.normal(size=channels))
    return (generator.normal(size=(4 * channels, channels)) @ mixing).astype(np.float64)


def output_error(rows: np.ndarray, weight: np.ndarray, parts: tuple, axis: int | None) -> float:
    return float(np.square(rows @ (dequantize(*parts, axis=axis).astype(np.float64) - weight)).sum())


@pytest.mark.parametrize(("scheme", "axis"), [(PER_CHANNEL, 1), (PER_TENSOR, None)])
@settings(max_examples=20, deadline=None)
@given(channels=st.integers(8, 150), outputs=st.integers(1, 20), seed=st.integers(0, 1000))
def test_beats_rounding_to_nearest(scheme, axis, channels, outputs, seed):
    rows = correlated_rows(channels, seed)
    weight = np.random.default_rng(seed + 1).normal(size=(channels, outputs)).astype(np.float32)
    found = gptq(weight, rows.T @ rows / len(rows), scheme)
    nearest = quantize_weight(weight, scheme, axis)
    assert output_error(rows, weight, found, axis) <= 1.02 * output_error(rows, weight, nearest, axis)


def test_halves_the_error_on_correlated_channels():
    rows = correlated_rows(200, 0)
    weight = np.random.default_rng(1).normal(size=(200, 30)).astype(np.float32)
    found = gptq(weight, rows.T @ rows / len(rows), PER_CHANNEL)
    nearest = quantize_weight(weight, PER_CHANNEL, 1)
    assert output_error(rows, weight, found, 1) < 0.5 * output_error(rows, weight, nearest, 1)


def test_uncorrelated_channels_are_rounded_to_nearest():
    weight = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    found = gptq(weight, np.eye(40), PER_CHANNEL)
    for part, nearest in zip(found, quantize_weight(weight, PER_CHANNEL, 1), strict=True):
        np.testing.assert_array_equal(part, nearest)


@pytest.mark.parametrize(
    "gram",
    [np.zeros((6, 6)), np.full((6, 6), np.nan), np.full((6, 6), np.inf), -np.eye(6), np.full((6, 6), 1e-40)],
    ids=["zero", "nan", "infinity", "negative", "noise"],
)
def test_second_moments_that_cannot_be_factored_fall_back_to_nearest(gram):
    weight = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    found = gptq(weight, gram, PER_CHANNEL)
    np.testing.assert_array_equal(found[0], quantize_weight(weight, PER_CHANNEL, 1)[0])


def test_one_sample_is_enough():
    row = np.random.default_rng(0).normal(size=(1, 32))
    weight = np.random.default_rng(1).normal(size=(32, 5)).astype(np.float32)
    found = gptq(weight, row.T @ row, PER_CHANNEL)
    assert output_error(row, weight, found, 1) <= output_error(row, weight, quantize_weight(weight, PER_CHANNEL, 1), 1)


@pytest.mark.parametrize("damp_percent", [0.0, -0.01])
def test_damping_is_raised_from_nothing_too(damp_percent):
    gram = np.ones((6, 6))
    triangle = factored(gram, damp_percent)
    assert triangle is not None
    np.testing.assert_allclose(triangle, factored(gram, 1e-6))


def test_stays_in_the_range_of_its_bits():
    rows = correlated_rows(50, 3)
    weight = np.random.default_rng(4).normal(size=(50, 9)).astype(np.float32)
    quantized, _, _ = gptq(weight, rows.T @ rows / len(rows), Scheme("int8", "per_channel", bits=7))
    assert quantized.min() >= -63
    assert quantized.max() <= 63


def test_grouped_keeps_products_of_correlated_inputs_better_than_nearest() -> None:
    generator = np.random.default_rng(7)
    steps = generator.normal(0, 20, (5, 9, 1))
    rows = generator.normal(3, 1, (5, 200, 1)) + generator.normal(0, 0.05, (5, 200, 9))
    rounded = grouped_gptq(steps, rows.transpose(0, 2, 1) @ rows / 200, Scheme("int8", "per_channel"))
    errors = [np.square(rows @ (steps - np.asarray(each, np.float64))).sum() for each in (rounded, np.rint(steps))]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("moment", [0.0, np.nan, np.inf])
def test_grouped_rounds_to_nearest_without_usable_moments(moment: float) -> None:
    steps = np.random.default_rng(8).normal(0, 20, (3, 4, 2))
    rounded = grouped_gptq(steps, np.full((3, 4, 4), moment), Scheme("int8", "per_channel"))
    np.testing.assert_array_equal(rounded, np.rint(steps))


def test_grouped_rounds_to_nearest_behind_a_channel_that_is_nearly_dead() -> None:
    rows = (np.random.default_rng(9).random((2, 64, 9)) * np.array([1e-22, 1.0]).reshape(2, 1, 1)).astype(np.float32)
    steps = np.full((2, 9, 1), 10.4)
    rounded = grouped_gptq(steps, rows.transpose(0, 2, 1) @ rows / np.float32(64), PER_CHANNEL)
    np.testing.assert_array_equal(rounded[0], np.rint(steps[0]))
    assert np.any(rounded[1] != np.rint(steps[1]))


@pytest.mark.parametrize("scheme", [PER_CHANNEL, PER_TENSOR])
def test_outputs_are_rounded_each_by_itself_however_many_there_are(scheme):
    rows = correlated_rows(8, 0)
    weight = np.random.default_rng(0).normal(size=(8, 5000)).astype(np.float32)
    weight[0] = 9  # gives every part of the outputs the same scale per tensor
    gram = rows.T @ rows / len(rows)
    whole = gptq(weight, gram, scheme)[0]
    parts = [gptq(weight[:, start : start + 500], gram, scheme)[0] for start in range(0, 5000, 500)]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
