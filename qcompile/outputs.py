"""What two models compute on the same inputs, side by side: the positions that count, and the cosine between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qcompile.calibration_masks import PaddingMask
from qcompile.session import Feed

Outputs = Sequence[Mapping[str, np.ndarray]]
"""Of a model, for each sample: name -> array."""


def is_numeric(array: np.ndarray) -> bool:
    """True for numbers and truth values; False for texts."""
    return np.asarray(array).dtype.kind not in "OSUT"


def without_padding(
    outputs: Outputs, samples: Sequence[Feed], masks: Sequence[PaddingMask]
) -> list[dict[str, np.ndarray]]:
    """Keep the valid positions of every output that has a mask's dims in front: [batch, sequence, ...] to [valid, ...].

    What a model computes at padded positions is never read, and says nothing about its accuracy. Where all positions of
    a sample are valid, its outputs stay as they are.
    """
    kept = []
    for found, sample in zip(outputs, samples, strict=True):
        arrays = dict(found)
        for mask in masks:
            valid = sample[mask.name] == mask.valid
            if valid.all():
                continue
            fits = {name: array for name, array in arrays.items() if array.shape[: valid.ndim] == valid.shape}
            arrays.update({name: array[valid] for name, array in fits.items()})
        kept.append(arrays)
    return kept


def cosine(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cosine between two arrays, as one vector each; None where both are empty; 1 or 0 for what has no numbers.

    Places where both hold the same infinity or NaN, as behind a mask, do not count; where one of them alone does, it
    is 0.
    """
    if np.size(first) == 0 and np.size(second) == 0:
        return None
    if np.shape(first) != np.shape(second) or not is_numeric(first):
        return float(np.array_equal(first, second))
    x, y = (np.ravel(array).astype(np.float64) for array in (first, second))
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return 0.0
    x, y = x[finite], y[finite]
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else float(np.array_equal(x, y))


def mean_cosine(found: Iterable[float | None]) -> float:
    """Mean over the samples; NaN: there was nothing to compare."""
    cosines = [each for each in found if each is not None]
    return statistics.fmean(cosines) if cosines else float("nan")


def cosine_of_output(before: Outputs, after: Outputs, name: str) -> float:
    """Mean over the samples of the cosine between what two models compute for an output; NaN: nothing to compare."""
    return mean_cosine(cosine(first[name], second[name]) for first, second in zip(before, after, strict=True))


def farthest_cosine(before: Outputs, after: Outputs) -> float:
    """Mean over the samples of the cosine of the output that is farthest; 1 where there is nothing to compare."""
    found = [cosine_of_output(before, after, name) for name in before[0]]
    return min((each for each in found if not math.isnan(each)), default=1.0)
