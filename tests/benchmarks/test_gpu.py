"""The benchmark of the Triton kernels, as far as it goes without a card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import Row, missed

ROOT = Path(__file__).resolve().parents[2]


def test_its_checks_pass_in_the_interpreter() -> None:
    # In a process of its own: it brings packages without their __init__.
    command = [sys.executable, "-m", "benchmarks.gpu", "--interpret"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert {line.split()[0] for line in run.stdout.splitlines()} == {
        "w2a16", "w3a16", "w4a16", "w8a16", "w8a8", "nf4", "llm_int8", "fp8", "norm", "gate"
    }  # fmt: skip


def _row(name: str, ms: float, holds: bool | None) -> Row:
    return Row(name, "8192x8192", 256, ms, 0.5, "fp16 rate", 1.0, "0.85x", holds)


def test_a_goal_is_reached_by_one_of_two_ways() -> None:
    assert not missed([_row("w4a16 gemm", 1.0, False), _row("w4a16 dequantize", 1.0, True), _row("nf4", 1.0, None)])
    assert missed([_row("w4a16 gemm", 1.0, False)]) == ["w4a16 at 8192x8192, 256 rows: 0.85x"]
    (found,) = missed([_row("w8a8", 1.0, True), _row("llm_int8", 1.2, True)])
    assert "1.200 of w8a8" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA card is here")
def test_without_a_card_it_says_that_nothing_was_timed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 3
    assert "nothing was timed" in run.stdout
