"""Quantization of activations to int8: with a scale for each token, which row_kernel finds, or with a given one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import round_even
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized
from qcompile.backends.triton.kernels.shapes import expect, expect_card, expect_input, expect_one_device, rows

STATIC_BLOCK = 1024


@triton.jit
def _quantize_static(
    x_ptr, scale_ptr, q_ptr, count, row_stride, input_stride, INPUTS: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x = tl.load(x_ptr + place // INPUTS * row_stride + place % INPUTS * input_stride, mask=inside, other=0.0)
    ratio = tl.div_rn(x.to(tl.float32), tl.load(scale_ptr))
    ratio = tl.where(ratio == ratio, tl.minimum(tl.maximum(ratio, -128.0), 127.0), 0.0)
    tl.store(q_ptr + place, round_even(ratio).to(tl.int8), mask=inside)


@operator("quantize_tokens")
def quantize_tokens(x: torch.Tensor, inliers: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q int8 [..., K] = x / scale rounded half to even, and scale float32 [...] = max|x of the row| / 127.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        inliers: bool [K], or None: all; what is False counts as 0 in q, and not for the scale.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    q, scale, _ = quantized(Rows(x, inliers=inliers))
    return q, scale


@quantize_tokens.register_fake
def _(x: torch.Tensor, inliers: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale, _ = Rows(x, inliers=inliers).empty_quantized()
    return q, scale


@operator("quantize_static")
def quantize_static(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x / scale rounded half to even, int8 [..., K]; saturates at -128 and 127, and NaN becomes 0.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        scale: float32 [].

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    return quantized_static(x, scale)


def quantized_static(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what `quantize_static` does, which it is for."""
    q = empty_static(x, scale)
    if q.numel():
        expect_card(x)
        matrix = rows(x)
        grid = (triton.cdiv(q.numel(), STATIC_BLOCK),)
        wrap_triton(_quantize_static)[grid](
            matrix, scale, q, q.numel(), matrix.stride(0), matrix.stride(1), INPUTS=x.shape[-1], BLOCK=STATIC_BLOCK
        )
    return q


@quantize_static.register_fake
def empty_static(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return q without its numbers, or refuse what does not fit."""
    expect_input(x)
    expect("scale", scale, (), (torch.float32,))
    expect_one_device(x, scale)
    return x.new_empty(x.shape, dtype=torch.int8)
