"""The processor that this runs on: its name and what it can do."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Iterator
from pathlib import Path

_DESCRIPTION = Path("/proc/cpuinfo")
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})

_CPUID_BITS = {"avx2": (1, 1, 5), "avx512_vnni": (1, 2, 11), "avx_vnni": (6, 0, 4)}
"""Where glibc keeps what the instruction CPUID says: index of the leaf, register, bit (sys/platform/x86.h)."""


@functools.cache
def name() -> str:
    """Return what the maker calls it, else its architecture; in an emulator that of the processor below."""
    return _described().get("model name") or platform.processor() or platform.machine()


def architecture() -> str:
    """Return the family of processors whose machine code it runs, such as x86_64."""
    return platform.machine()


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
    """Return what the processor can do, in the words of Linux, such as avx2; nothing elsewhere.

    An emulator may have less than the processor below it, which is the one that Linux describes: what decides about
    products of 8 bits is asked from the processor itself, as the runtimes do, where glibc (2.33) passes that on.
    """
    found = _described()
    return frozenset(found.get("flags", found.get("Features", "")).split()) - _denied()


@functools.cache
def _described() -> dict[str, str]:
    """Return what Linux says about the first core; nothing elsewhere."""
    try:
        text = _DESCRIPTION.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


class _Leaf(ctypes.Structure):
    """`struct cpuid_feature`: eax, ebx, ecx and edx as the processor gives them, and what of it can be used."""

    _fields_ = (("cpuid", ctypes.c_uint * 4), ("active", ctypes.c_uint * 4))


@functools.cache
def _denied() -> frozenset[str]:
    """Return what the processor itself says that it does not have; nothing where it cannot be asked."""
    return frozenset(_asked())


def _asked() -> Iterator[str]:
    if platform.system() != "Linux":
        return
    leaf_of = getattr(ctypes.CDLL(None), "__x86_get_cpuid_feature_leaf", None)
    if leaf_of is None:
        return
    leaf_of.argtypes, leaf_of.restype = [ctypes.c_uint], ctypes.POINTER(_Leaf)
    for flag, (leaf, register, bit) in _CPUID_BITS.items():
        if not leaf_of(leaf).contents.cpuid[register] >> bit & 1:
            yield flag
