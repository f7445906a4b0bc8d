"""Mutants of small models through the door and the canonical passes: none may crash, hang or raise what is not typed.

    python -m tests.fuzz_door --count 10000 --first 0

Each mutant is the same for the same number. They run in a second process, which is started again when one ends it.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mutants import mutant, seeds

PATIENCE = 60
"""Seconds after which a mutant counts as hanging; the door itself gives up after three of processor time."""

MEMORY = 8 * 2**30
"""Bytes for the door, the passes and the runtime."""

ACCEPTED, REFUSED = "accepted", "refused"


def outcome(content: bytes, *, limited: bool) -> str:
    """Return what the door and the canonical passes say of a model; what is not typed is returned as text.

    Args:
        content: the model.
        limited: read it first in a process of its own, as users do; else in this one, which is fifty times as fast.
    """
    import qcompile

    try:
        if not limited and not _is_read(content):
            return f"{REFUSED}: memory"
        qcompile.trace(content, trust_input=not limited)
    except qcompile.QCompileError as error:
        return f"{REFUSED}: {type(error).__name__}" if error.reason and error.mend else f"no reason: {error!r}"
    except MemoryError:
        return "MemoryError"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"{type(error).__name__}: {error}"
    return ACCEPTED


def _is_read(content: bytes) -> bool:
    """Whether the first read ends with memory left; the process of its own would say it in words."""
    from qcompile.untrusted.__main__ import read

    try:
        read(content, "the mutant")
    except MemoryError:
        return False
    return True


def is_finding(result: str) -> bool:
    """Whether an outcome is neither an acceptance nor a typed refusal."""
    return result != ACCEPTED and not result.startswith(REFUSED)


def real_models() -> list[bytes]:
    """Return the reference models that are installed and small enough to be read thousands of times."""
    from qcompile.errors import MissingDependencyError
    from qcompile.models import magika

    try:
        return [Path(magika.model_path()).read_bytes()]
    except MissingDependencyError:
        return []


def work(connection: multiprocessing.connection.Connection) -> None:
    """Answer each number with the outcome of that mutant.

    One in a hundred is of a real model, and one goes through the whole door.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    small, real = seeds(), real_models()
    while True:
        number = connection.recv()
        start = time.perf_counter()
        result = outcome(mutant(number, real if real and number % 100 == 50 else small), limited=number % 100 == 0)
        connection.send((result, time.perf_counter() - start))


Work = Callable[[multiprocessing.connection.Connection], None]


def outcomes(first: int, count: int, work: Work = work) -> Iterator[tuple[int, str, float]]:
    """Yield the number, outcome and seconds of each mutant, or of what else `work` makes of numbers in a process."""
    context = multiprocessing.get_context("spawn")
    worker = None
    for number in range(first, first + count):
        if worker is None:
            near, far = context.Pipe()
            worker = context.Process(target=work, args=(far,), daemon=True)
            worker.start()
            far.close()
        near.send(number)
        try:
            result, seconds = near.recv() if near.poll(PATIENCE) else ("hangs", float(PATIENCE))
        except EOFError:
            worker.join()
            result, seconds = f"crashes with exit code {worker.exitcode}", 0.0
        yield number, result, seconds
        if result == "hangs" or result.startswith("crashes"):
            worker.kill()
            worker = None
    if worker is not None:
        worker.kill()


def main() -> int:
    """Print the count of each outcome and the slowest mutant; 1 when there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    slowest, findings, start = (0.0, -1), 0, time.perf_counter()
    for number, result, seconds in outcomes(options.first, options.count):
        counts[result.splitlines()[0][:100]] += 1
        slowest = max(slowest, (seconds, number))
        if is_finding(result):
            findings += 1
            print(f"mutant {number}: {result[:300]}", flush=True)
    for result, times in counts.most_common():
        print(f"{times:7} {result}")
    print(f"{options.count} mutants, {findings} findings, {time.perf_counter() - start:.0f} s;", end=" ")
    print(f"the slowest, number {slowest[1]}, took {slowest[0]:.1f} s")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
