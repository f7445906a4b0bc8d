"""Ranges of static activations."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.calibration_ranges import StaticRanges
from qcompile.calibration_statistics import ChannelStatistics
from qcompile.scheme import ASYMMETRIC_UINT8, Scheme
from tests.passes.quantizable import KERNEL, WEIGHTS, parse

ROWS = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
ROWS[0, 0] = 100
SEEN = ChannelStatistics(ROWS.min(axis=0), ROWS.max(axis=0), ROWS.mean(axis=0), ROWS, len(ROWS))
LINEAR = "g (float[n, 4] x) => (float y) { y = MatMul(x, w) }"
CONVOLUTION = "g (float[n, 4, 8, 8] x) => (float y) { y = Conv(x, k) }"


def low_and_high(text: str, ranges: StaticRanges) -> tuple[float, float]:
    model = parse(text, w=WEIGHTS, k=KERNEL)
    return ranges.of(model.graph.inputs[0], SEEN)


@pytest.mark.parametrize(("text", "clips"), [(LINEAR, False), (CONVOLUTION, True)], ids=["linear", "convolution"])
def test_convolutions_may_have_an_observer_of_their_own(text: str, clips: bool) -> None:
    assert low_and_high(text, StaticRanges(ASYMMETRIC_UINT8, "minmax")) == (ROWS.min(), 100)
    _, high = low_and_high(text, StaticRanges(ASYMMETRIC_UINT8, "minmax", "mse"))
    assert (high < 100) == clips


def test_what_readers_do_not_tell_apart_lies_outside() -> None:
    text = "g (float[n, 4] x) => (float y) { y = Clip(x, low, high) }"
    model = parse(text, low=np.float32(-1), high=np.float32(6))
    ranges = StaticRanges(ASYMMETRIC_UINT8, "minmax")
    assert ranges.of(model.graph.inputs[0], SEEN) == (-1, 6)
    scale, zero_point = ranges.parameters(model.graph.inputs[0], SEEN)
    assert (scale, zero_point) == (np.float32(7 / 255), 36)
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize(("dtype", "middle"), [("int8", 0), ("uint8", 128)])
def test_symmetric_integers_of_both_types_stand_for_the_same_numbers(dtype: str, middle: int) -> None:
    model = parse(LINEAR, w=WEIGHTS)
    scale, zero_point = StaticRanges(Scheme(dtype), "minmax").parameters(model.graph.inputs[0], SEEN)
    assert (scale, zero_point) == (np.float32(100 / 127), middle)
