"""Partial sums [S, M, N] in float32, added in order with a bias, and rounded once: the same bits in every run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import narrow

BLOCK = 256


@triton.jit
def _add(partial_ptr, bias_ptr, y_ptr, count, outputs, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(partial_ptr + part * count + place, mask=inside, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + place % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, narrow(total, y_ptr.dtype.element_ty), mask=inside)


def add_up(partial: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """Write the sum over the first axis of [S, M, N], plus bias [N], to y [M, N]."""
    grid = (triton.cdiv(y.numel(), BLOCK),)
    wrap_triton(_add)[grid](partial, bias, y, y.numel(), y.shape[1], SPLIT=len(partial), BLOCK=BLOCK)
