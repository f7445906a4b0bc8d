"""Is a path that of a plain file? Reading from a pipe waits for its writer, and a device may never end."""

from __future__ import annotations

import stat
from pathlib import Path


def check_plain(path: Path) -> None:
    """Raise OSError where a path, or what a link leads to, is no plain file: a folder, pipe, socket or device.

    Nothing is opened. Where there is nothing, the error is that of `Path.stat`.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:
        raise OSError(f"no file can have this name: {error}") from error
    if not stat.S_ISREG(mode):
        raise OSError("it is not a plain file")
