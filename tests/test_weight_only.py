"""The signal-to-noise ratio of a linear's output, from all rows or, of a large weight, from some."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qcompile import weight_only


@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight as it is stored."""

    array: np.ndarray

    def columns(self, columns: slice) -> Stored:
        return Stored(self.array[:, columns])

    def weight(self, group_size: int) -> np.ndarray:  # noqa: ARG002
        return self.array


def sqnr(count: int) -> float | None:
    """Of a weight whose error shows in every row but the multiples of 8, where it is a tenth of the output."""
    rows = np.ones((count, 2), np.float32)
    rows[:, 1] = np.arange(count) % 8 != 0
    weight = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    return weight_only.output_sqnr(weight, Stored(weight * np.array([[1.0], [0.9]], np.float32)), -1, rows)


def test_without_rows_there_is_none() -> None:
    assert sqnr(0) is None


@pytest.mark.parametrize(("count", "decibels"), [(65, 10 * np.log10(121 / 0.56)), (127, 10 * np.log10(238 / 1.11))])
def test_fewer_than_twice_64_rows_all_count(count: int, decibels: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_only, "_PRODUCTS", 0)
    assert sqnr(count) == pytest.approx(decibels, rel=1e-4)


def test_of_a_large_weight_64_rows_in_even_steps_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_only, "_PRODUCTS", 0)
    assert sqnr(512) == np.inf


def test_of_a_small_weight_all_rows_count() -> None:
    assert sqnr(512) == pytest.approx(10 * np.log10((512 + 448) / 4.48), rel=1e-4)
