"""Run all benchmarks, or those named: print their tables, save them, and bring the documents up to date."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.results import commit, machine, save, show, update_documents

NAMES = (
    "minilm",
    "planted",
    "outliers",
    "agreement",
    "fx_speed",
    "ahead_of_time",
    "folding",
    "vision",
    "compile_time",
    "language_model",
    "weight_only_loss",
    "learned_rounding",
    "weight_only_error",
    "solver_time",
    "stream_memory",
)


def main(names: list[str]) -> int:
    """Return 1 when a goal falls short, 2 for an unknown name."""
    console = Console()
    unknown = set(names) - set(NAMES)
    if unknown:
        console.print(f"no benchmark {', '.join(sorted(unknown))}; there are: {' '.join(NAMES)}")
        return 2
    logging.getLogger().setLevel(logging.ERROR)
    revision = commit()
    console.print(f"{machine()}, commit {revision}")
    holds = True
    for name in names or NAMES:
        with tempfile.TemporaryDirectory(prefix=f"qcompile-{name}-") as folder:
            benchmark = importlib.import_module(f"benchmarks.{name}").run(Path(folder))
        show(benchmark, console)
        console.print(f"saved as {save(name, benchmark, revision)}")
        update_documents(name, benchmark, machine(), revision)
        holds = holds and all(goal.holds for goal in benchmark.goals)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
