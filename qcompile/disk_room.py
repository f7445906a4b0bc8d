"""Tells a disk that is full from other failures of files."""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator

from qcompile.errors import ArtifactError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NUMPY = re.compile(r"\d+ requested and \d+ written")
"""What `ndarray.tofile` says, in an OSError without a number, when the disk takes a part of it."""


def is_full(error: OSError) -> bool:
    """True when there is no room: on the disk, in a quota, or because of a limit on the size of files."""
    return error.errno in _NO_ROOM or bool(_NUMPY.search(str(error)))


@contextlib.contextmanager
def room_for_temporary_files() -> Iterator[None]:
    """Raise ArtifactError where the disk of the temporary folder is full; other failures pass."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise ArtifactError(
            f"temporary folder {tempfile.gettempdir()}",
            f"it has no room for the work: {error}",
            "Make room there, or set TMPDIR to another folder",
        ) from error
