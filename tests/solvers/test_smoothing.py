import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompile.scheme import Scheme
from qcompile.solvers import smoothing
from qcompile.solvers.affine import dequantize, quantize_dequantize, quantize_weight, scale_and_zero_point, value_range
from qcompile.solvers.smoothing_families import LARGEST_FACTOR

STATIC = Scheme("uint8", sym=False)
SCHEMES = [
    (STATIC, Scheme("int8", "per_channel")),
    (Scheme("int8"), Scheme("int8", "per_tensor")),
    (Scheme("uint8", sym=False, dynamic=True), Scheme("int8", "per_tensor")),
    (Scheme("int8", "per_token", dynamic=True), Scheme("int8", "per_channel")),
]


def linears(rows, *weights, activations=STATIC, weight_scheme=SCHEMES[0][1], groups=None, count=10**6):
    rows = np.asarray(rows, np.float32)
    return smoothing.Linears(
        rows=rows,
        minimum=rows.min(axis=0),
        maximum=rows.max(axis=0),
        weights=[np.asarray(weight, np.float32) for weight in weights],
        activations=activations,
        weight_scheme=weight_scheme,
        groups=np.arange(rows.shape[1]) if groups is None else np.asarray(groups),
        count=count,
    )


def outlier_linears(seed=0, channels=32, planted=3, **options):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(96, channels))
    rows[:, generator.choice(channels, planted, replace=False)] *= 60
    return linears(rows, *(generator.normal(size=(channels, size)) for size in (24, 40)), **options)


def reference_error(problem, scale):
    """The same measure, written with the quantizer of `affine`."""
    total = 0.0
    rows = problem.rows / scale
    if problem.activations.dynamic:
        low, high = value_range(rows, problem.activations)
    else:
        low, high = (problem.minimum / scale).min(), (problem.maximum / scale).max()
    seen = quantize_dequantize(rows, *scale_and_zero_point(low, high, problem.activations), problem.activations)
    for weight in problem.weights:
        axis = 1 if problem.weight_scheme.granularity == "per_channel" else None
        rounded = dequantize(*quantize_weight(weight * scale[:, None], problem.weight_scheme, axis), axis)
        expected = problem.rows @ weight
        total += (np.square(seen @ rounded - expected).sum(axis=1) / np.square(expected).sum(axis=1)).mean()
    return total / len(problem.weights)


@pytest.mark.parametrize(("activations", "weights"), SCHEMES)
def test_the_error_is_that_of_the_quantizer(activations, weights):
    problem = outlier_linears(activations=activations, weight_scheme=weights)
    scale = smoothing.smoothing_scale(*problem.absmax(), 0.5)
    measured = smoothing.OutputError(problem)(scale)
    assert measured == pytest.approx(reference_error(problem, scale), rel=1e-3)


@pytest.mark.parametrize(("activations", "weights"), SCHEMES)
def test_many_outputs_are_measured_on_some_of_them(activations, weights):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(16, 1500))
    weight[2, 7] = 30
    problem = linears(generator.normal(size=(64, 16)), weight, activations=activations, weight_scheme=weights)
    scale = smoothing.smoothing_scale(*problem.absmax(), 0.5)
    assert smoothing.OutputError(problem, 256)(scale) == pytest.approx(reference_error(problem, scale), rel=0.1)


@pytest.mark.parametrize(("activations", "weights"), SCHEMES)
def test_search_beats_the_paper_and_no_smoothing_on_planted_outliers(activations, weights):
    problems = [outlier_linears(seed, activations=activations, weight_scheme=weights) for seed in range(6)]
    found = [smoothing.search(problem) for problem in problems]
    paper = [min(smoothing.by_alpha(problem, alpha).error for alpha in np.linspace(0, 1, 21)) for problem in problems]
    assert sum(one.error for one in found) < sum(paper)
    for one, problem in zip(found, problems, strict=True):
        assert one.error < 0.2 * one.error_without
        assert one.error == pytest.approx(reference_error(problem, one.scale), rel=1e-3)
        assert one.error_without == pytest.approx(reference_error(problem, np.ones(32, np.float32)), rel=1e-3)


def test_equation_4():
    scale = smoothing.smoothing_scale(np.array([4.0, 9.0]), np.array([2.0, 16.0]), 0.5)
    np.testing.assert_allclose(scale, [np.sqrt(2), 0.75], rtol=1e-6)
    np.testing.assert_allclose(smoothing.smoothing_scale(np.array([8.0]), np.array([2.0]), 1.0), [8.0], rtol=1e-6)


def test_equation_4_again_on_what_it_smoothed_changes_nothing():
    problem = outlier_linears()
    scale = smoothing.by_alpha(problem, 0.7).scale
    again = linears(problem.rows / scale, *(weight * scale[:, None] for weight in problem.weights))
    np.testing.assert_allclose(smoothing.by_alpha(again, 0.7).scale, 1, rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_channels_without_a_usable_magnitude_get_1(bad):
    problem = outlier_linears()
    rows, first, second = problem.rows.copy(), problem.weights[0].copy(), problem.weights[1].copy()
    rows[:, 4] = bad
    first[7], second[7] = bad, bad
    broken = linears(rows, first, second)
    with np.errstate(invalid="ignore"):
        for found in (smoothing.search(broken), smoothing.by_alpha(broken, 0.5)):
            assert found.scale[4] == found.scale[7] == 1
            assert np.isfinite(found.scale).all()
            assert np.isfinite([found.error, found.error_without]).all()
            assert found.error < found.error_without


def test_tied_channels_get_one_factor_by_their_largest_magnitudes():
    groups = np.arange(32) // 2
    problem = outlier_linears(groups=groups)
    absmax_x, absmax_w = problem.absmax()
    np.testing.assert_array_equal(absmax_x[::2], absmax_x[1::2])
    np.testing.assert_array_equal(absmax_x[::2], np.abs(problem.rows).max(axis=0).reshape(-1, 2).max(axis=1))
    np.testing.assert_array_equal(absmax_w[::2], absmax_w[1::2])
    for found in (smoothing.search(problem), smoothing.by_alpha(problem, 0.5)):
        np.testing.assert_array_equal(found.scale[::2], found.scale[1::2])
        assert found.scale.max() > found.scale.min()


def test_nothing_to_quantize_has_no_gain():
    found = smoothing.search(linears(np.zeros((4, 3)), np.ones((3, 2))))
    np.testing.assert_array_equal(found.scale, 1)
    assert found.gain == 0


def test_what_is_exact_already_is_left_alone():
    generator = np.random.default_rng(0)
    rows, weight = generator.integers(0, 256, (64, 8)), generator.integers(-127, 128, (8, 6))
    rows[0, 0], weight[0] = 255, 127
    found = smoothing.search(linears(rows, weight))
    assert found.error == found.error_without == 0
    np.testing.assert_array_equal(found.scale, 1)


magnitudes = hnp.arrays(np.float32, 6, elements=st.floats(0, 2.0**127, width=32))


@given(magnitudes, magnitudes, st.floats(0, 1))
def test_equation_4_is_finite_and_away_from_zero(absmax_x, absmax_w, alpha):
    scale = smoothing.smoothing_scale(absmax_x, absmax_w, alpha)
    assert scale.dtype == np.float32
    assert np.all((scale >= 0.99 / LARGEST_FACTOR) & (scale <= 1.01 * LARGEST_FACTOR))
    assert np.all(scale[(absmax_x == 0) | (absmax_w == 0)] == 1)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
numbers = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=40, deadline=None)
@given(
    shapes.flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float32, n[:2], elements=numbers), hnp.arrays(np.float32, n[1:], elements=numbers)
        )
    )
)
def test_search_is_never_worse_than_no_smoothing(arrays):
    rows, weight = arrays
    found = smoothing.search(linears(rows, weight))
    assert found.error <= found.error_without
    assert np.all(np.isfinite(found.scale) & (found.scale > 0))


def test_on_few_data_the_search_leaves_room_for_data_not_seen_yet():
    """Error on new rows of the same distribution, with ranges from the few: saturation counts."""

    def new_error(seed, count):
        generator = np.random.default_rng(seed)
        sizes = np.exp(generator.normal(size=64))
        rows, new = (generator.laplace(size=(size, 64)) * sizes for size in (48, 1000))
        problem = linears(rows, generator.normal(size=(64, 32)), count=count)
        scale = smoothing.search(problem).scale
        return reference_error(dataclasses.replace(problem, rows=new.astype(np.float32)), scale)

    seeds = range(8)
    assert sum(new_error(seed, 48) for seed in seeds) < 0.7 * sum(new_error(seed, 10**6) for seed in seeds)


def test_halves_share_the_range_of_one():
    seen, unseen = outlier_linears().halves()
    assert len(seen.rows) + len(unseen.rows) == 96
    np.testing.assert_array_equal(seen.maximum, seen.rows.max(axis=0))
    np.testing.assert_array_equal(unseen.maximum, seen.maximum)


def test_surprise_falls_with_the_data_and_is_none_for_ranges_at_run_time():
    assert outlier_linears(count=96).surprise == 0.5
    assert outlier_linears(count=960).surprise == pytest.approx(0.05)
    assert outlier_linears(count=96, activations=SCHEMES[-1][0]).surprise == 0


@pytest.mark.filterwarnings("error")
def test_weights_whose_outputs_are_too_large_to_be_squared_are_not_scaled():
    problem = outlier_linears()
    problem = dataclasses.replace(problem, weights=[weight * np.float32(1e30) for weight in problem.weights])
    np.testing.assert_array_equal(smoothing.search(problem).scale, 1)
    found = smoothing.by_alpha(problem, 0.5)
    assert np.isfinite(found.scale).all()
    assert found.gain == 0
