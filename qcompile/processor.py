"""The processor that this runs on: its name and what it can do."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_DESCRIPTION = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@functools.cache
def name() -> str:
    """Return what the maker calls it, else its architecture."""
    return _described().get("model name") or platform.processor() or platform.machine()


@functools.cache
def identity() -> str:
    """Return the name and a list of what the processor can do; not how many cores: what is timed runs on one."""
    return f"{name()}, {' '.join(sorted(flags()))}"


def runs_target(target: str) -> bool:
    """Return True where this processor multiplies 8-bit integers as the target of that name does.

    Only Linux tells; elsewhere False.
    """
    has_vnni = bool(flags() & _VNNI)
    return "avx2" in flags() and has_vnni == ("vnni" in target)


def flags() -> frozenset[str]:
    """Return what the processor can do, in the words of Linux, such as avx2; nothing elsewhere."""
    found = _described()
    return frozenset(found.get("flags", found.get("Features", "")).split())


@functools.cache
def _described() -> dict[str, str]:
    """Return what Linux says about the first core; nothing elsewhere."""
    try:
        text = _DESCRIPTION.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
