from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
def test_torch_traces_into_kernels_and_they_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    surroundings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    surroundings |= {"TRITON_CACHE_DIR": str(tmp_path), "QCOMPILE_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "tests.backends.triton.kernels.compile_all", "80", "90"]
    run = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
