"""Memory that was freed, and that the process still holds."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def return_freed_memory() -> None:
    """Give what was freed back to the operating system, where the C library can: glibc's `malloc_trim`.

    glibc keeps freed blocks of up to 32 MiB in its heap: of a session of ONNX Runtime that is closed, four fifths.
    The next session, whose blocks have other sizes, would come on top. Elsewhere nothing is done.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; on Windows there is no library without a name
        return lambda _: None
    return found
