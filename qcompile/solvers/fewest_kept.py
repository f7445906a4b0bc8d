"""The smallest set that holds a bound, found in few trials: of layers that stay float."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

Units = frozenset[int]
"""Places in a ranked list."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        kept: the smallest set that was found to hold, else the one with the highest score.
        score: its score.
        holds: whether it holds.
        trials: how many scores were asked for.
    """

    kept: Units
    score: float
    holds: bool
    trials: int


def fewest_kept(count: int, score: Callable[[Units], float], *, lowest: float, best: float, max_trials: int) -> Found:
    """Search a small set of units that, kept, reach a score.

    First the shortest run of units from the front of the list that does: by doubling, then by bisection. Then units of
    it are given up, from its end, where the others hold without them. Finds the smallest set where units are ranked by
    what they cost and their costs add up, and no smallest one in general: that takes as many trials as there are sets.

    Args:
        count: how many units there are, the one that costs most first.
        score: of a set that is kept; NaN is lower than any number. Not asked twice for one set.
        lowest: a score that holds.
        best: the score with all kept, which holds and is never asked for.
        max_trials: most scores that are asked for, at least 1.
    """
    trials = _Trials(score, lowest, max_trials)
    low, high = _shortest_run(count, trials)
    everything = frozenset(range(count))
    if high == count and high - low == 1:
        return Found(everything, best, True, len(trials.scores))
    if high == count:
        kept = max(trials.scores, key=trials.scores.__getitem__)
        return Found(kept, trials.scores[kept], False, len(trials.scores))
    kept = frozenset(range(high))
    for unit in reversed(range(high)):
        if trials.may_try(kept - {unit}) and trials.holds(kept - {unit}):
            kept -= {unit}
    return Found(kept, trials.scores[kept], True, len(trials.scores))


def _shortest_run(count: int, trials: _Trials) -> tuple[int, int]:
    """Return the longest run from the front that does not hold, and the shortest that does; -1 and count: not known."""
    low, high, length = -1, count, 0
    while length < count and trials.may_try(frozenset(range(length))):
        if trials.holds(frozenset(range(length))):
            high = length
            break
        low, length = length, max(1, 2 * length)
    while high - low > 1 and trials.may_try(middle := frozenset(range((low + high) // 2))):
        if trials.holds(middle):
            high = len(middle)
        else:
            low = len(middle)
    return low, high


class _Trials:
    """Scores of sets, each asked for once."""

    def __init__(self, score: Callable[[Units], float], lowest: float, max_trials: int) -> None:
        self.scores: dict[Units, float] = {}
        self._score = score
        self._lowest = lowest
        self._max_trials = max_trials

    def may_try(self, kept: Units) -> bool:
        """True where the score is known, or there is a trial left."""
        return kept in self.scores or len(self.scores) < self._max_trials

    def holds(self, kept: Units) -> bool:
        """Ask for the score where it is not known; NaN is lower than any number."""
        if kept not in self.scores:
            found = self._score(kept)
            self.scores[kept] = -math.inf if math.isnan(found) else found
        return self.scores[kept] >= self._lowest
