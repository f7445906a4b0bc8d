"""The reservoir of rows, against streams of every length."""

import hypothesis
import numpy as np
from hypothesis import strategies

from qcompile.calibration_rows import RowReservoir, stratified


def kept(lengths, max_rows, seed=0):
    """Positions kept of a stream that comes in runs of these lengths; each run returns max_rows at most."""
    reservoir = RowReservoir(("x",), max_rows, seed)
    start = 0
    for length in lengths:
        density, carry, phase = reservoir.wanted()
        wanted = min(int(np.floor(length * density + carry)), length, max_rows)
        rows = start + stratified(length, wanted, phase)
        reservoir.add(length, {"x": rows[:, None].astype(np.float32)})
        start += length
    assert reservoir.count == start
    return reservoir.rows("x")[:, 0].astype(int)


@hypothesis.given(strategies.integers(0, 300), strategies.floats(0, 1, exclude_max=True), strategies.integers(0, 300))
def test_stratified_indices_are_one_of_each_equal_part(wanted, phase, extra):
    total = wanted + extra
    hypothesis.assume(total > 0)
    chosen = stratified(total, wanted, phase)
    assert len(chosen) == wanted
    assert len(set(chosen)) == wanted
    assert np.all((chosen >= 0) & (chosen < total))
    parts = np.arange(wanted + 1) * (total / max(wanted, 1))
    assert np.all(chosen >= np.floor(parts[:-1]))
    assert np.all(chosen <= np.ceil(parts[1:]))


@hypothesis.given(strategies.lists(strategies.integers(1, 200), min_size=1, max_size=40), strategies.integers(1, 64))
def test_rows_are_bounded_distinct_in_order_and_enough(lengths, max_rows):
    positions = kept(lengths, max_rows)
    total = sum(lengths)
    assert len(positions) <= max_rows
    assert len(positions) >= min(total, max_rows // 4)
    assert np.all(np.diff(positions) > 0)
    if total <= max_rows:
        np.testing.assert_array_equal(positions, np.arange(total))


def test_rows_are_even_over_the_whole_stream():
    for lengths in ([128] * 200, [7, 300, 45] * 60, [5000] + [10] * 1000, [10] * 1000 + [5000]):
        positions = kept(lengths, 512)
        shares = np.histogram(positions, 8, (0, sum(lengths)))[0] / len(positions)
        assert np.all(np.abs(shares - 1 / 8) < 0.035), lengths[:3]


def test_rows_do_not_keep_step_with_the_length_of_the_samples():
    places = kept([128] * 400, 512) % 128
    shares = np.histogram(places, 8, (0, 128))[0] / len(places)
    assert np.all(np.abs(shares - 1 / 8) < 0.05)


def test_rows_depend_on_the_seed_alone():
    np.testing.assert_array_equal(kept([50] * 90, 64), kept([50] * 90, 64))
    assert not np.array_equal(kept([50] * 90, 64, seed=1), kept([50] * 90, 64))


def test_values_of_one_group_keep_the_same_rows():
    reservoir = RowReservoir(("x", "y"), 4, 0)
    for run in range(9):
        rows = np.arange(3, dtype=np.float32)[:, None] + 3 * run
        wanted = stratified(3, min(int(3 * reservoir.wanted()[0]), 3), 0.3)
        reservoir.add(3, {"x": rows[wanted], "y": -rows[wanted]})
    np.testing.assert_array_equal(reservoir.rows("x"), -reservoir.rows("y"))
