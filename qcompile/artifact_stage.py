"""The place beside an artifact where the next one is made, by one process at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import filelock

from qcompile.artifact_exchange import sync
from qcompile.errors import ArtifactError

_HELD: ContextVar[Path | None] = ContextVar("_HELD", default=None)
"""The folder that `keep_others_out` keeps for a `stage_beside` to come."""


@contextlib.contextmanager
def keep_others_out(output: Path) -> Iterator[None]:
    """Be the only writer of `output` from now on, so that others need not work first to be refused.

    One `stage_beside` of the same folder may come in it. At the end nothing is left of it but what that has written;
    what a process leaves that is killed is an empty file of one name, of which the lock is gone.

    Raises:
        ArtifactError: another process, or thread, is at work there.
        OSError: nothing can be made there.
    """
    with _parents(output), _only_writer(output):
        held = _HELD.set(output)
        try:
            yield
        finally:
            _HELD.reset(held)


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
    if _HELD.get() == output:
        held = _HELD.set(None)  # for one: whoever writes there within it is another writer
        try:
            with _emptied(output) as stage:
                yield stage
        finally:
            _HELD.reset(held)
    else:
        with _parents(output), _only_writer(output), _emptied(output) as stage:
            yield stage


@contextlib.contextmanager
def _emptied(output: Path) -> Iterator[Path]:
    _clear(output)
    stage = _stage(output)
    stage.mkdir()
    try:
        yield stage
    finally:
        _clear(output)


@contextlib.contextmanager
def _parents(output: Path) -> Iterator[None]:
    """Make the folders above; at the end remove those that were made in vain."""
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for parent in made:
            sync(parent.parent)
        yield
    finally:
        if not output.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # another process is at work there
                    parent.rmdir()


def behind_link(output: Path) -> Path:
    """Return the folder that a symbolic link leads to, else the path as it is: a link is kept, its folder replaced.

    So does a path that ends in "..", for what lies beside the folder has to be beside it.
    """
    return output.resolve() if output.is_symlink() or output.name == ".." else output


def replaced(output: Path) -> Path:
    """Return where the folder `output` lies while it is replaced on a system that cannot exchange folders."""
    return _stage(output) / "old"


@contextlib.contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    lock = filelock.FileLock(_lock(output))
    _lock(output).touch(0o644)  # where nothing can be made, as in /proc, filelock says that another has it
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
