import itertools
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from qcompile.scheme import Scheme
from qcompile.solvers import ranges

SCHEMES = [Scheme(), Scheme("uint8"), Scheme("uint8", sym=False), Scheme("int8", sym=False)]
any_scheme = strategies.sampled_from(SCHEMES)
any_rows = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=strategies.floats(width=32)
)
ordinary_rows = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=strategies.floats(-1000, 1000, width=32),
)


def solve(name, rows, scheme, **options):
    return ranges.OBSERVERS[name](rows.min(axis=0), rows.max(axis=0), rows, scheme, **options)


def measured(rows, found, scheme):
    elements, weights = ranges.summary(rows)
    return ranges.squared_errors(elements, weights, np.array([found[0]]), np.array([found[1]]), scheme)[0]


def true_error(rows, found, scheme):
    elements = rows.ravel()
    return ranges.squared_errors(elements, np.ones_like(elements), np.array([found[0]]), np.array([found[1]]), scheme)[
        0
    ]


def planted(seed=0, outlier=50.0, shape=(512, 1536)):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    rows[7, 5] = outlier
    return rows


@pytest.mark.parametrize("name", ranges.OBSERVERS)
@hypothesis.given(any_rows, any_scheme)
@hypothesis.example(np.zeros((3, 2), np.float32), Scheme())
@hypothesis.example(np.full((3, 2), 7.0, np.float32), Scheme("uint8", sym=False))
@hypothesis.example(np.full((3, 2), 1e-45, np.float32), Scheme())
@hypothesis.example(np.full((3, 2), np.finfo(np.float32).max, np.float32), Scheme("uint8", sym=False))
@hypothesis.example(np.full((3, 2), np.nan, np.float32), Scheme())
@hypothesis.example(np.array([[np.inf, 1.0], [-np.inf, -1.0]], np.float32), Scheme())
def test_any_samples_give_a_finite_range_around_zero(name, rows, scheme):
    low, high = solve(name, rows, scheme)
    assert np.isfinite([low, high]).all()
    assert low <= 0.0 <= high
    bottom, top = ranges.minmax(rows.min(axis=0), rows.max(axis=0), rows, scheme)
    finite = rows[np.isfinite(rows)]
    assert low >= min(bottom, finite.min(initial=0.0))
    assert high <= max(top, finite.max(initial=0.0))


@pytest.mark.parametrize("name", ranges.OBSERVERS)
def test_no_samples_give_the_whole_range(name):
    nothing = np.zeros((0, 2), np.float32)
    found = ranges.OBSERVERS[name](np.array([-1.0, -3.0]), np.array([2.0, 0.5]), nothing, Scheme())
    assert found == (-3.0, 2.0)


def test_minmax_is_what_was_seen_and_not_what_was_sampled():
    rows = np.ones((4, 2), np.float32)
    assert ranges.minmax(np.array([-5.0, 0.0]), np.array([1.0, 9.0]), rows, Scheme()) == (-5.0, 9.0)


@hypothesis.given(ordinary_rows, any_scheme)
def test_mse_is_never_worse_than_minmax(rows, scheme):
    assert measured(rows, solve("mse", rows, scheme), scheme) <= measured(rows, solve("minmax", rows, scheme), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("distribution", ["normal", "laplace"])
def test_mse_of_few_samples_is_no_worse_than_minmax_on_all_the_data(scheme, distribution):
    data = getattr(np.random.default_rng(6), distribution)(size=(8192, 3)).astype(np.float32)
    ends = data.min(axis=0), data.max(axis=0)
    sampled = ranges.mse(*ends, data[::16], scheme)
    assert true_error(data, sampled, scheme) <= true_error(data, ranges.minmax(*ends, data[::16], scheme), scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("outlier", [50.0, -50.0, 100.0])
def test_mse_beats_minmax_on_a_planted_outlier_by_the_error_of_all_samples(scheme, outlier):
    rows = planted(outlier=outlier)
    assert true_error(rows, solve("mse", rows, scheme), scheme) < 0.8 * true_error(
        rows, solve("minmax", rows, scheme), scheme
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mse_comes_within_three_percent_of_a_search_over_every_bound(scheme):
    rows = np.random.default_rng(3).laplace(size=(100, 200)).astype(np.float32)
    bounds = np.linspace(0.02, 1.0, 400) * np.abs(rows).max()
    elements = rows.ravel()
    lows, highs = np.maximum(-bounds, rows.min()), np.minimum(bounds, rows.max())
    exhaustive = ranges.squared_errors(elements, np.ones_like(elements), lows, highs, scheme).min()
    assert true_error(rows, solve("mse", rows, scheme), scheme) <= 1.03 * exhaustive


@pytest.mark.parametrize("short", [0.5, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_mse_of_asymmetric_ranges_comes_within_three_percent_of_a_search_over_both_ends(short, sign):
    scheme = Scheme("uint8", sym=False)
    rows = sign * np.maximum(np.random.default_rng(4).standard_t(3, size=(20, 200)), -short).astype(np.float32)
    fractions = np.linspace(0.01, 1.0, 100)
    lows, highs = np.meshgrid(fractions * rows.min(), fractions * rows.max())
    exhaustive = ranges.squared_errors(
        rows.ravel(), np.ones(rows.size, np.float32), lows.ravel(), highs.ravel(), scheme
    )
    assert true_error(rows, solve("mse", rows, scheme), scheme) <= 1.03 * exhaustive.min()


@pytest.mark.parametrize("sign", [1, -1])
def test_mse_cuts_an_outlier_at_one_end_and_leaves_the_other_end_alone(sign):
    scheme = Scheme("uint8", sym=False)
    rows = np.random.default_rng(6).uniform(0, 10, size=(300, 1000)).astype(np.float32)
    rows[5, 5] = -5
    low, high = sorted(sign * np.array(solve("mse", sign * rows, scheme)))
    assert low > -2
    assert high > 9.5


@hypothesis.given(ordinary_rows, any_scheme, strategies.floats(50, 100), strategies.floats(50, 100))
def test_percentile_widens_with_its_share(rows, scheme, one, other):
    narrow = solve("percentile", rows, scheme, percent=min(one, other))
    wide = solve("percentile", rows, scheme, percent=max(one, other))
    assert wide[0] <= narrow[0]
    assert narrow[1] <= wide[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_percentile_leaves_out_the_share_that_it_says(scheme):
    rows = np.random.default_rng(1).normal(size=(200, 500)).astype(np.float32)
    low, high = solve("percentile", rows, scheme, percent=99.0)
    assert np.mean((rows < low) | (rows > high)) == pytest.approx(0.01, rel=0.02)
    assert solve("percentile", rows, scheme, percent=100) == solve("minmax", rows, scheme)


def test_entropy_cuts_off_an_outlier_and_keeps_a_uniform_distribution():
    rows = planted()
    _, high = solve("entropy", rows, Scheme())
    assert high < 10
    uniform = np.random.default_rng(0).uniform(-1, 1, (300, 300)).astype(np.float32)
    assert solve("entropy", uniform, Scheme())[1] > 0.95


def test_entropy_takes_the_least_divergence_of_a_literal_transcription_of_the_method():
    rows = np.random.default_rng(5).standard_t(3, size=(100, 300)).astype(np.float32)
    low, high = solve("entropy", rows, Scheme())
    whole = float(np.abs(rows).max())
    counts, _ = np.histogram(np.abs(rows), 2048, (0, whole))
    best = np.inf, 0
    for cut in range(128, 2049, 8):
        reference = counts[:cut].astype(float)
        reference[-1] += counts[cut:].sum()
        candidate = np.zeros(cut)
        edges = [level * cut // 128 for level in range(129)]
        for start, stop in itertools.pairwise(edges):
            filled = reference[start:stop] > 0
            if filled.any():
                candidate[start:stop][filled] = counts[start:stop].sum() / filled.sum()
        p, q = reference / reference.sum(), candidate / candidate.sum()
        divergence = sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)
        best = min(best, (divergence, cut))
    assert max(-low, high) == pytest.approx(whole * best[1] / 2048, rel=1e-6)


def test_the_summary_keeps_the_extremes_and_the_total_weight():
    rows = planted(shape=(300, 1000))
    elements, weights = ranges.summary(rows)
    assert elements.size == weights.size <= 5120
    assert elements.max() == 50.0
    assert weights.sum(dtype=np.float64) == pytest.approx(rows.size, rel=1e-5)


def test_a_range_of_a_large_value_takes_milliseconds():
    rows = planted(shape=(512, 1536))
    for name in ranges.OBSERVERS:
        best = np.inf
        for _ in range(5):
            start = time.thread_time()
            solve(name, rows, Scheme("uint8", sym=False))
            best = min(best, time.thread_time() - start)
        assert best < 0.1, name
