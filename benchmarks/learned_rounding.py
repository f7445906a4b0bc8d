"""Loss and time of `w4a16-learned` and `w4a16-inc` beside AutoRound's own, on SmolLM2-135M-Instruct in 4 and 3 bits.

As `weight_only_loss`; AutoRound tunes 40 iterations on the same 32 windows of 512 tokens. Seconds are those of whole
processes for AutoRound, and from the module in memory to the artifact for ours; on a machine that does nothing else.
`w4a16-inc` is measured where the extra `inc` is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Benchmark, Goal, Row
from benchmarks.weight_only_loss import BITS, measured, of

AUTOROUND = ("inc", "quantize_autoround", "autoround")
INC = ("w4a16-inc",) if importlib.util.find_spec("auto_round") else ()
RECIPES = ("w4a16-gptq", "w4a16-learned", *INC)
LOSS, SECONDS, SAME = 0.9, 0.7, 1.02


def run(folder: Path) -> Benchmark:
    """Measure AutoRound, where it is not in the cache, and ours."""
    rows = measured(folder, [AUTOROUND], RECIPES)
    return Benchmark(
        "SmolLM2-135M-Instruct, symmetric, groups of 64, calibrated on 32 x 512 tokens", rows, _goals(rows)
    )


def _goals(rows: Sequence[Row]) -> list[Goal]:
    goals = []
    for bits in BITS:

        def share(column: str, recipe: str, bits: int = bits) -> float:
            return of(rows, column, f"qcompile {recipe}", bits) / of(rows, column, "autoround autoround", bits)

        loss, seconds = "loss above float, nats", "s"
        goals.append(Goal(f"W{bits}, learned: loss, of AutoRound's", share(loss, "w4a16-learned"), LOSS, at_most=True))
        goals.append(Goal(f"W{bits}, learned: time, of its", share(seconds, "w4a16-learned"), SECONDS, at_most=True))
        goals += [Goal(f"W{bits}, inc: loss, of its", share(loss, name), SAME, at_most=True) for name in INC]
    return goals
