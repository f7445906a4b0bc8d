"""Latencies that can be compared: candidates take turns, and the median of each is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_ms(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 20, block: int = 5, warm_up: int = 3
) -> dict[str, float]:
    """Median latency of every candidate in milliseconds.

    In every round each candidate runs a block of consecutive calls, of which the first is not counted: it still pays
    for the caches and spinning threads of the candidate before it. A slow stretch of the machine hits all alike.

    Args:
        candidates: name -> call to be timed.
        rounds: how many turns each candidate gets.
        block: counted calls per turn.
        warm_up: uncounted calls of each candidate before the first round.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    for _ in range(rounds):
        for name, run in candidates.items():
            run()
            for _ in range(block):
                start = time.perf_counter()
                run()
                samples[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in samples.items()}
