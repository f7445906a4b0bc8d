"""Kills writers of an artifact by SIGKILL, at each of their file operations and at random moments: what do they leave?

    python -m tests.killed_writers FOLDER [--new] [--renames] [--moments 50]

prints JSON. Writers are forked from this process, which has loaded everything: only the writing is left to be killed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from qcompile import artifact_exchange
from qcompile.artifact import load
from qcompile.artifact_stage import replaced
from qcompile.artifact_writing import sole_writer
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, InputError
from qcompile.report import Report
from tests.artifacts import check_output, files, save, write

# What the interpreter tells its hooks; os.fsync is not among it and counted by itself.
OPERATIONS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
    "fcntl.flock",
    "ctypes.dlsym",
}


def write_old(output: Path) -> None:
    write(output, lambda folder: save(folder, "model.onnx.data"), report=Report(model="old"))


def write_new(output: Path) -> None:
    write_as_compile(output=output)


@sole_writer
def write_as_compile(*, output: Path) -> None:
    write(output, report=Report(model="new"), target=None)


def break_off(folder: Path) -> Lowered:
    save(folder)
    raise InputError("the model", "it is refused", "This is a test")


def forked(work: Callable[[], None]) -> int:
    """Process id of a child that does the work, and nothing at its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def survived(child: int) -> bool:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def die_at(number: int) -> None:
    """From now on count file operations of this process; it is killed before the one with the number."""
    counted = itertools.count()
    sync = os.fsync

    def count() -> None:
        if next(counted) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted_sync(descriptor: int) -> None:
        count()
        sync(descriptor)

    os.fsync = counted_sync
    sys.addaudithook(lambda event, _: count() if event in OPERATIONS else None)


class Kills:
    """Counts what killed writers leave behind in a folder.

    Attributes:
        output: where they write.
        replaces: whether an artifact is there before.
        found: state of the folder -> after how many kills.
        afterwards: what is wrong behind the next writer -> how often; empty when nothing is.
    """

    def __init__(self, folder: Path, replaces: bool) -> None:
        self.output = folder / "written" / "out"
        self.replaces = replaces
        self.found: Counter[str] = Counter()
        self.afterwards: Counter[str] = Counter()
        self.old = folder / "old"
        write_old(self.old)
        write_new(folder / "new")
        self.whole = {name: files(folder / name) for name in ("old", "new")}

    def prepare(self) -> None:
        shutil.rmtree(self.output.parent, ignore_errors=True)
        self.output.parent.mkdir()
        if self.replaces:
            shutil.copytree(self.old, self.output)

    def look(self) -> None:
        state = self.state()
        self.found[state] += 1
        check_output(self.output)
        with contextlib.suppress(InputError):
            write(self.output, break_off)  # the next writer, who has no luck either
        after = self.state()
        if (state, after) != ("set aside", "old") and after != state:
            self.afterwards[f"{state}, then {after}"] += 1
        if os.listdir(self.output.parent) != (["out"] if self.output.exists() else []):
            self.afterwards["leftovers"] += 1

    def state(self) -> str:
        if not self.output.exists() and not replaced(self.output).exists():
            return "lost" if self.replaces else "none"
        try:
            name = load(self.output).report.model
        except ArtifactError as error:
            aside = replaced(self.output)
            said = str(aside) in error.reason
            return "set aside" if said and aside.exists() and files(aside) == self.whole["old"] else "corrupt"
        return name if files(self.output) == self.whole[name] else "corrupt"

    def at_each_operation(self) -> int:
        """Number of operations of a writer who survives."""

        def work(number: int) -> None:
            die_at(number)
            write_new(self.output)

        for number in itertools.count():
            self.prepare()
            if survived(forked(lambda number=number: work(number))):
                self.look()
                return number
            self.look()
        raise AssertionError

    def at_random_moments(self, count: int) -> None:
        self.prepare()
        start = time.perf_counter()
        assert survived(forked(lambda: write_new(self.output)))
        seconds = time.perf_counter() - start
        moments = random.Random(0)
        for _ in range(count):
            self.prepare()
            child = forked(lambda: write_new(self.output))
            time.sleep(moments.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            survived(child)
            self.look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", action="store_true", help="nothing is there before")
    parser.add_argument("--renames", action="store_true", help="as on systems that cannot exchange two folders")
    parser.add_argument("--moments", type=int, default=50)
    given = parser.parse_args()
    if given.renames:
        artifact_exchange.exchanged = lambda _first, _second: False
    kills = Kills(given.folder, replaces=not given.new)
    operations = kills.at_each_operation()
    kills.at_random_moments(given.moments)
    print(json.dumps({"operations": operations, "found": kills.found, "afterwards": kills.afterwards}))


if __name__ == "__main__":
    main()
