"""How long compiling takes and how much memory it needs, each in a fresh process.

The goal for memory is (weights + added) / weights: float weights, and what compiling adds to a process that holds them
at its peak, over the float weights. What the imported libraries occupy is in neither; it is in the plain peak RSS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.results import Benchmark, Goal, Row

RATIO = "(weights + added) / weights"
CASES = (
    ("minilm", "smoothquant-o3", "onnxruntime", 15.0),
    ("smollm2", "w8a8-static", "onnxruntime", 180.0),
)


def run(folder: Path) -> Benchmark:
    """Compile MiniLM and SmolLM2."""
    rows, goals = [], []
    for model, recipe, backend, limit in CASES:
        command = [sys.executable, "-m", "benchmarks.compile_once", model, recipe, backend, str(folder / model)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(result.stdout.splitlines()[-1])
        row: Row = {
            "model": model,
            "recipe": recipe,
            "runtime": backend,
            "seconds": measured["seconds"],
            "MB of float weights": measured["weights"] / 1e6,
            "peak RSS, MB": measured["peak"] / 1e6,
            "MB added by compiling": measured["added"] / 1e6,
            RATIO: 1 + measured["added"] / measured["weights"],
        }
        rows.append(row)
        goals.append(Goal(f"{model}, seconds to compile", measured["seconds"], limit, at_most=True))
    goals.append(
        Goal(f"smollm2, {RATIO}", float(rows[-1][RATIO]), 2.5, at_most=True),
    )
    return Benchmark("Compile time and peak memory, 64 calibration samples of 128 tokens", rows, goals)
