"""Whatever kills a writer, and whenever: the folder holds the artifact before or the one after, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qcompile.artifact_exchange import exchanged

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the writers are forked")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: there fsync costs nothing, and a kill is a kill on every file system."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


def kill_writers(folder: Path, *, moments: int, options: Sequence[str] = ()) -> set[str]:
    """The states that the folder was found in, after a kill at each file operation and at so many random moments."""
    command = [sys.executable, "-m", "tests.killed_writers", str(folder), "--moments", str(moments), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["afterwards"] == {}, "the next writer finds what was left and clears it"
    assert answer["operations"] > 40
    assert sum(answer["found"].values()) == answer["operations"] + 1 + moments  # the last one survived
    return set(answer["found"])


def test_a_killed_writer_leaves_the_old_artifact_or_the_new_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    if not exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system does not exchange")
    (tmp_path / "kills").mkdir()
    assert kill_writers(tmp_path / "kills", moments=50) == {"old", "new"}


def test_where_nothing_was_there_is_nothing_or_the_new_one(memory: Path) -> None:
    assert kill_writers(memory, moments=10, options=["--new"]) == {"none", "new"}


def test_without_an_exchange_the_old_one_is_put_back_by_the_next_writer(memory: Path) -> None:
    assert kill_writers(memory, moments=10, options=["--renames"]) == {"old", "set aside", "new"}
