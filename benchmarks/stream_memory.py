"""Peak memory of quantizing a decoder that is larger than it: 3.4 billion random parameters, 6.9 GB in bfloat16.

Each in a fresh process, without running the model. What is measured is what compiling adds to the interpreter and its
libraries, see stream_once.py. Needs 12 GB of disk in the working folder: the weights, a file for each finished layer,
the artifact. How much is added follows from the largest weight, not from how many there are: one of 32000 x 3200 is
there as bfloat16 (0.2 GB), float32 (0.4 GB) and transposed (0.4 GB) for a moment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.results import Benchmark, Goal, Row
from qcompile.models import random_folder

SIZES = random_folder.Sizes()
CASES = (
    ("w4a16-rtn", "onnxruntime", "model"),
    ("w4a16-rtn", "onnxruntime", "genai"),
    ("w4a16-hqq", "onnxruntime", "genai"),
)
LIMIT = 1.2 * 2**30 / 1e6


def run(folder: Path) -> Benchmark:
    """Write the model, compile it in each way, and remove it."""
    source, output = folder / "random", folder / "streamed"
    rows: list[Row] = []
    goals = []
    try:
        weights = random_folder.write(source, SIZES)
        for case in CASES:
            command = [sys.executable, "-m", "benchmarks.stream_once", str(source), *case, str(output)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured = json.loads(result.stdout.splitlines()[-1])
            rows.append(
                {
                    **dict(zip(("recipe", "runtime", "format"), case, strict=True)),
                    "MB of weights": weights / 1e6,
                    "MB of libraries": measured["before"] / 1e6,
                    "MB added": measured["added"] / 1e6,
                    "seconds": measured["seconds"],
                }
            )
            goals.append(Goal(f"{', '.join(case)}: MB added", measured["added"] / 1e6, LIMIT, at_most=True))
    finally:
        for made in (source, output):
            shutil.rmtree(made, ignore_errors=True)
    return Benchmark("Peak memory of quantizing 3.4 billion parameters", rows, goals)
