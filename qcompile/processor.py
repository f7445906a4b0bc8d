"""The processor that this runs on: its name and what it can do."""

from __future__ import annotations

import functools
import os
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
    """Return the name, how many cores this process may use, and a list of what the processor can do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name()}, {cores} cores, {' '.join(sorted(_flags()))}"


def runs_target(target: str) -> bool:
    """Return True where this processor multiplies 8-bit integers as the target of that name does.

    Only Linux tells; elsewhere False.
    """
    has_vnni = bool(_flags() & _VNNI)
    return bool(_flags()) and has_vnni == ("vnni" in target)


def _flags() -> frozenset[str]:
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
