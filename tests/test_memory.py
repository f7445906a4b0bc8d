"""What is freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qcompile.memory import return_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_freed_memory_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])

    np.ones(30 * 2**18, np.float32).sum()  # once a block of 30 MiB is freed, glibc keeps smaller ones in its heap
    return_freed_memory()
    before = resident()
    blocks = [np.ones(2**18, np.float32) for _ in range(100)]
    held = blocks[-1]
    del blocks
    kept = resident()
    return_freed_memory()
    assert resident() - before < 0.2 * (kept - before)
    assert held[0] == 1
