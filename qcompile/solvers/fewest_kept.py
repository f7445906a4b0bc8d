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
        kept: the smallest set that was found to hold; where none holds, not even all, the one with the highest score.
        score: its score, as it was found.
        holds: whether it holds.
        trials: how many scores were asked for.
        complete: False: trials ran out, and a smaller set may hold.
    """

    kept: Units
    score: float
    holds: bool
    trials: int
    complete: bool = True


def fewest_kept(count: int, score: Callable[[Units], float], *, lowest: float, max_trials: int) -> Found:
    """Search a small set of units that, kept, reach a score; what is returned as holding has been asked for and does.

    First the shortest run of units from the front of the list that does: by doubling, then by bisection; where none
    does, or trials run out before, all of them are kept. Then units are given up, from the end, where the others hold
    without them: one, and as long as that holds twice as many as before. Finds the smallest set where units are ranked
    by what they cost and their costs add up, and no smallest one in general: that takes as many trials as there are
    sets.

    Args:
        count: how many units there are, the one that costs most first.
        score: of a set that is kept; NaN is lower than any number. Not asked twice for one set.
        lowest: a score that holds.
        max_trials: most scores that are asked for, at least 1, besides the one with all kept: that is asked for where
            nothing else was found to hold.
    """
    trials = _Trials(score, lowest, max_trials)
    run = _shortest_run(count, trials)
    if not trials.holds(frozenset(range(run))):
        best = max(trials.scores, key=lambda kept: (_comparable(trials.scores[kept]), len(kept)))
        return Found(best, trials.scores[best], False, len(trials.scores), trials.complete)
    kept = _without_spare(run, trials)
    return Found(kept, trials.scores[kept], True, len(trials.scores), trials.complete)


def _shortest_run(count: int, trials: _Trials) -> int:
    """Return the length of the shortest run from the front that was found to hold; count: none shorter was."""
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
    return high


def _without_spare(run: int, trials: _Trials) -> Units:
    """Return the units of a run, which holds, without those that were found to be spare."""
    needed: Units = frozenset()
    step, grows = 1, True
    while run > 0 and trials.may_try(shorter := needed | frozenset(range(max(run - step, 0)))):
        if trials.holds(shorter):
            run = max(run - step, 0)
            step = 2 * step if grows else max(step // 2, 1)
        elif step > 1:
            step, grows = step // 2, False
        else:
            run -= 1
            needed |= {run}
            grows = True
    return needed | frozenset(range(run))


def _comparable(score: float) -> float:
    return -math.inf if math.isnan(score) else score


class _Trials:
    """Scores of sets, each asked for once.

    Attributes:
        scores: of what was asked for.
        complete: False once a trial was denied.
    """

    def __init__(self, score: Callable[[Units], float], lowest: float, max_trials: int) -> None:
        self.scores: dict[Units, float] = {}
        self.complete = True
        self._score = score
        self._lowest = lowest
        self._max_trials = max_trials

    def may_try(self, kept: Units) -> bool:
        """True where the score is known, or there is a trial left."""
        may = kept in self.scores or len(self.scores) < self._max_trials
        self.complete = self.complete and may
        return may

    def holds(self, kept: Units) -> bool:
        """Ask for the score where it is not known; NaN does not hold."""
        if kept not in self.scores:
            self.scores[kept] = self._score(kept)
        return self.scores[kept] >= self._lowest
