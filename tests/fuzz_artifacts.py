"""Artifacts of random graphs, by every recipe, on both backends: what the verifier says, and what an independent judge.

    python -m tests.fuzz_artifacts --count 2000 --first 0

Each graph is the same for the same number. They are compiled in a second process, which is started again when one ends
it. Nothing is tuned, and latency is hardly measured.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing.connection
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import onnx

import qcompile
from qcompile.artifact import Artifact
from qcompile.artifact_portable import GRAPH
from qcompile.errors import NothingMatchedError, QCompileError, VerificationError
from tests.fuzz_door import outcomes
from tests.independent_judge import Verdict, judge, with_float_linears
from tests.random_graphs import build, feeds, numbered, single_feeds

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o1", "smoothquant-o2", "smoothquant-o3")
BACKENDS = ("onnxruntime", "openvino")
RIGHT, NOTHING, UNJUDGED = "right", "nothing to quantize", "a tie near every input"


def judged(artifact: Artifact) -> Verdict:
    """Return the verdict on an artifact of a random graph."""
    portable = onnx.load(artifact.path / GRAPH)
    portable = with_float_linears(portable) if artifact.backend == "openvino" else portable
    return judge(portable, single_feeds(), artifact.run)


def outcome(number: int) -> str:
    """Compile the graph of a number by the recipe and for the backend of that number; return what came of it."""
    recipe, backend = RECIPES[number % 5], BACKENDS[number // 5 % 2]
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:

        def compiled() -> Artifact:
            model = build(numbered(number))
            return qcompile.compile(model, recipe, backend=backend, calibration=feeds(4), output=Path(folder) / "a")

        try:
            return _of(judged(compiled()), RIGHT, "WRONG past verify")
        except NothingMatchedError:
            return NOTHING
        except VerificationError as error:
            if not error.subject.startswith("artifact"):
                return f"REFUSED, {recipe} for {backend}: {error}"
            with mock.patch("qcompile.compile_stages.verify_artifact", return_value=[]):
                verdict = judged(compiled())
            return _of(verdict, "REFUSED although right", "refused rightly") + f", {recipe} for {backend}: {error}"
        except QCompileError as error:
            return f"REFUSED, {recipe} for {backend}: {type(error).__name__}: {error}"


def _of(verdict: Verdict, right: str, wrong: str) -> str:
    if not verdict.compared:
        return UNJUDGED if right == RIGHT else f"REFUSED, {UNJUDGED}"
    off = f": {verdict.output} by {verdict.off:.3g} of what float32 explains"
    return wrong + off if verdict.wrong else right


def work(connection: multiprocessing.connection.Connection) -> None:
    """Answer each number with its outcome."""
    logging.disable(logging.CRITICAL)
    with (
        mock.patch("qcompile.tuning_candidates.WORTH_MS", math.inf),
        mock.patch("qcompile.outcome.LATENCY_SECONDS", 0.01),
    ):
        while True:
            number, start = connection.recv(), time.perf_counter()
            try:
                result = outcome(number)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                result = f"{type(error).__name__}: {error}"
            connection.send((result, time.perf_counter() - start))


def main() -> int:
    """Print the count of each outcome and all findings; 1 when there was one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    findings, start = 0, time.perf_counter()
    for number, result, _ in outcomes(options.first, options.count, work):
        counts[result.split(":")[0].split(",")[0]] += 1
        if result not in (RIGHT, NOTHING, UNJUDGED):
            findings += 1
            print(f"graph {number}: {result[:1000]}", flush=True)
    for result, times in counts.most_common():
        print(f"{times:7} {result}")
    print(f"{options.count} graphs, {findings} findings, {time.perf_counter() - start:.0f} s")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
