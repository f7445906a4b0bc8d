"""Packages of machine code (`aot=True`) on the processor: seconds to compile one, and milliseconds beside the others.

Each model in one recipe of integers: the lowered graph run operator by operator, the package that AOTInductor compiled
of it, and the ONNX Runtime artifact of the same recipe take turns on two threads, and the medians count. On a card
nothing has been measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import qcompile
from benchmarks.agreement import LOADERS
from benchmarks.results import Benchmark, Goal, Row
from qcompile import backends
from qcompile.latency import interleaved_medians

MODELS = ("MiniLM", "Whisper decoder", "PP-OCRv4 recognition", "EfficientNet-Lite0", "CREPE")
RECIPE, THREADS, SECONDS = "w8a8-static", 2, 10.0
MOST_TIME = 1.0
"""Of the graph's: a package that is slower is of no use."""


def run(folder: Path) -> Benchmark:
    """Compile each model, and time it in three ways."""
    rows = list(_rows(folder))
    goals = [
        Goal(f"{row['model']}, package over graph", float(row["of the graph's"]), MOST_TIME, at_most=True)
        for row in rows
    ]
    return Benchmark(f"Packages ahead of time on the processor, {RECIPE}", rows, goals)


def _rows(folder: Path) -> Iterator[Row]:
    compiler = backends.get("triton").ahead_of_time
    assert compiler is not None
    for name in MODELS:
        subject = LOADERS[name]()
        graph, peer = (
            qcompile.compile(
                subject.model,
                RECIPE,
                backend=backend,
                calibration=subject.calibration,
                output=folder / f"{name}-{backend}",
                verify=False,
                tune="none",
            )
            for backend in ("triton", "onnxruntime")
        )
        start = time.perf_counter()
        package = compiler.compile(graph.model_path, [subject.sample])
        seconds = time.perf_counter() - start
        sessions = {
            "graph": graph.open_session(threads=THREADS),
            "package": compiler.open(graph.path / package, threads=THREADS),
            "onnxruntime": peer.open_session(threads=THREADS),
        }
        runs = {key: functools.partial(session.run, subject.sample) for key, session in sessions.items()}
        times = interleaved_medians(runs, seconds=SECONDS)
        yield {
            "model": name,
            "s to compile": seconds,
            "ms, graph": times["graph"],
            "ms, package": times["package"],
            "ms, onnxruntime": times["onnxruntime"],
            "of the graph's": times["package"] / times["graph"],
        }
