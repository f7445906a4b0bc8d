"""Brings a folder to the disk, and puts it in the place of another."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from qcompile.manifest import relative_files

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EPERM)
"""What the kernel, the file system or a sandbox says that does not know the exchange."""


def put_in_place(new: Path, output: Path, old: Path) -> None:
    """Rename `new`, which is on the disk, to `output`; on a failure `output` is what it was.

    What lies at `output` goes to `new` or to `old`. Linux exchanges the two folders in one step: whatever stops the
    process, `output` is the one or the other. Where the system has no such step there are two, and what stops the
    process between them leaves what was replaced at `old`.

    Args:
        new: the folder to put there.
        output: where; on the same file system.
        old: a name that is free, on the same file system.
    """
    if not output.exists():
        new.rename(output)
    elif not exchanged(new, output):
        output.rename(old)
        try:
            new.rename(output)
        except BaseException:
            old.rename(output)
            raise
    sync(new.parent)
    sync(output.parent)


def exchanged(first: Path, second: Path) -> bool:
    """Exchange what two paths name in one step (renameat2 of Linux); False where the system does not offer that."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # glibc before 2.28
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(second))


def bring_to_disk(folder: Path) -> None:
    """Wait until the disk has everything in a folder, and the folder itself; raises OSError where it has no room."""
    for name in relative_files(folder):
        sync(folder / name)
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
        sync(inner)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the list of names in a folder; on Windows folders are left out."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
