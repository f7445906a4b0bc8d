"""NonMaxSuppression of the reference evaluation: onnx's own compares boxes one by one in Python, and wants every input.

Independent of everything that compiles.
"""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun


class NonMaxSuppression(OpRun):
    """Places [selected, 3] of batch, class and box: by falling score, none that overlaps one before it too much."""

    def _run(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        most: np.ndarray | None = None,
        overlap: np.ndarray | None = None,
        least: np.ndarray | None = None,
        center_point_box: int | None = None,
    ) -> tuple[np.ndarray]:
        first, second = boxes[..., :2], boxes[..., 2:]
        if center_point_box:
            half = second / boxes.dtype.type(2)
            first, second = first - half, first + half
        low, high = np.minimum(first, second), np.maximum(first, second)
        count = 0 if most is None or not most.size else int(most.item())
        limit = 0.0 if overlap is None or not overlap.size else float(overlap.item())
        above = -np.inf if least is None or not least.size else float(least.item())
        found = [
            (item, group, box)
            for item, group in np.ndindex(*scores.shape[:2])
            for box in _selected(low[item], high[item], scores[item, group], count, limit, above)
        ]
        return (np.array(found, np.int64).reshape(-1, 3),)


def _selected(
    low: np.ndarray, high: np.ndarray, scores: np.ndarray, count: int, limit: float, above: float
) -> list[int]:
    """Return up to `count` boxes of a score above a number, the best first; of equals the one in front."""
    left = np.argsort(-scores, kind="stable")
    left = left[scores[left] > above]
    found: list[int] = []
    while left.size and len(found) < count:
        best, left = int(left[0]), left[1:]
        found.append(best)
        left = left[~_overlap(low, high, best, left, limit)]
    return found


def _overlap(low: np.ndarray, high: np.ndarray, best: int, others: np.ndarray, limit: float) -> np.ndarray:
    """Return for each of the others whether its intersection with the best is more than a part of their union."""
    sides = np.maximum(np.minimum(high[best], high[others]) - np.maximum(low[best], low[others]), 0)
    areas = np.prod(high - low, axis=-1)
    both = np.prod(sides, axis=-1)
    union = areas[best] + areas[others] - both
    part = np.divide(both, union, out=np.zeros_like(both), where=(both > 0) & (union > 0))
    return np.asarray(part > union.dtype.type(limit))
