"""The place beside an artifact where the next one is made, by one process at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from qcompile.artifact_exchange import sync
from qcompile.errors import ArtifactError


@contextlib.contextmanager
def stage_beside(output: Path) -> Iterator[Path]:
    """Make a folder beside `output` that is this process's alone; at the end remove it, and parents made in vain.

    It has one name, so that what a killed process left there is found: the next writer takes `output` back from it
    where that is missing, and removes the rest. Whether a process lives is told by a lock that the system drops with
    it. Does not keep out writers that share the folder by a file system without locks.

    Yields:
        The empty folder; `output` may be moved to `replaced(output)`.

    Raises:
        ArtifactError: another process, or thread, has one for the same `output`.
        OSError: it cannot be made.
    """
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for parent in made:
            sync(parent.parent)
        with _only_writer(output):
            _clear(output)
            stage = _stage(output)
            stage.mkdir()
            try:
                yield stage
            finally:
                _clear(output)
    finally:
        if not output.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # another process is at work there
                    parent.rmdir()


def behind_link(output: Path) -> Path:
    """Return the folder that a symbolic link leads to, else the path as it is: a link is kept, its folder replaced."""
    return output.resolve() if output.is_symlink() else output


def replaced(output: Path) -> Path:
    """Return where the folder `output` lies while it is replaced on a system that cannot exchange folders."""
    return _stage(output) / "old"


def try_out(output: Path) -> None:
    """Find out whether `stage_beside` would work, and leave everything as it is.

    Raises:
        ArtifactError: another process is at work there.
        OSError: a folder cannot be made there.
    """
    if _lock(output).exists():
        with _only_writer(output):
            pass
    above = next(parent for parent in output.parents if parent.exists())
    trial = above / f".{output.name}.qcompile-trial"  # one name: what a killed process left goes with the next
    trial.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process tried it out too
        trial.rmdir()


@contextlib.contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    lock = filelock.FileLock(_lock(output))
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, RuntimeError) as error:  # RuntimeError: this thread has it, which would wait for itself
        raise ArtifactError(
            str(output), "another process is writing it", "Wait until it is done, or give another folder"
        ) from error
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile sees that its name is gone and does not take it.
        with contextlib.suppress(OSError):
            _lock(output).unlink()
        lock.release()


def _clear(output: Path) -> None:
    """Remove the stage; where the process stopped between two renames, what was to be replaced is put back first."""
    if replaced(output).exists() and not output.exists():
        replaced(output).rename(output)
        sync(output.parent)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(_stage(output))


def _stage(output: Path) -> Path:
    return output.with_name(f".{output.name}.qcompile-stage")


def _lock(output: Path) -> Path:
    return output.with_name(f".{output.name}.qcompile-lock")
