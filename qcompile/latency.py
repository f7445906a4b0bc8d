"""Latency of models side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

WARM_UP_CALLS = 3
FEWEST_ROUNDS = 3
BLOCK = 5
PAUSE_SECONDS = 0.05


def durations(run: Callable[[], object], *, seconds: float) -> list[float]:
    """Return how long each of many calls took, in seconds; the first WARM_UP_CALLS do not count.

    Args:
        run: runs the model once.
        seconds: how long to measure; at least BLOCK calls are made.
    """
    for _ in range(WARM_UP_CALLS):
        run()
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < BLOCK or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 2.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Return the median duration of each run in milliseconds.

    The runs take turns, so that what else the machine does meets all of them alike. A turn is a pause, in which the
    threads of the run before it stop spinning, a call that is not counted, and BLOCK calls that are. Does not tell
    apart differences below a few percent on a busy machine.

    Args:
        runs: name -> a function that runs the model once.
        seconds: how long to measure, all runs together; at least FEWEST_ROUNDS rounds are made.
        progress: called with the fraction that is done.
    """
    for run in runs.values():
        for _ in range(WARM_UP_CALLS):
            run()
    durations: dict[str, list[float]] = {name: [] for name in runs}
    begin, rounds = time.perf_counter(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - begin < seconds:
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            run()
            for _ in range(BLOCK):
                start = time.perf_counter()
                run()
                durations[name].append(time.perf_counter() - start)
        rounds += 1
        if progress is not None:
            progress(min(rounds / FEWEST_ROUNDS, (time.perf_counter() - begin) / seconds, 1.0))
    return {name: 1000 * statistics.median(values) for name, values in durations.items()}
