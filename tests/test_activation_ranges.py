"""Ranges of what layers read, by the name of the layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qcompile.activation_ranges import Ranges
from tests.backends.portable import parse


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the ranges read of the statistics of a value."""

    absmax: np.ndarray
    count: int = 8


def test_of_layers_of_one_name_the_first_counts() -> None:
    model = parse(
        "(float[n,2] x) => (float[n,4] y) { h = MatMul(x, a) y = MatMul(h, b) }",
        a=np.ones((2, 3), np.float32),
        b=np.ones((3, 4), np.float32),
    )
    for node in model.graph:
        node.name = "again"
    statistics: Any = {"x": Seen(np.array([1.0, 9.0])), "h": Seen(np.ones(3))}
    ranges = Ranges()
    ranges.collected(model, statistics)
    assert ranges.found() == []
    ranges.collected(model, statistics | {"x": Seen(np.array([3.0, 3.0]))})
    (found,) = ranges.found()
    assert found.layer == "again"


def test_what_was_seen_in_fewer_samples_is_not_compared() -> None:
    model = parse("(float[n,2] x) => (float[n,3] y) { y = MatMul(x, a) }", a=np.ones((2, 3), np.float32))
    ranges = Ranges()

    def collected(largest: float, count: int) -> None:
        statistics: Any = {"x": Seen(np.array([1.0, largest]), count)}
        ranges.collected(model, statistics)

    collected(5.0, 4)
    collected(6.0, 8)
    assert ranges.found() == []
    collected(3.0, 8)
    (found,) = ranges.found()
    assert (found.before[-1], found.after[-1]) == (6.0, 3.0)
