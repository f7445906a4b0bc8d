"""Quantization of activations to 8 bits with one scale for each token, alone or behind a norm, in one kernel.

A program has a row, which stays in registers between the norm, its largest magnitude and the division: x is read once,
and what the norm gives is never written in float. All is float32; x / scale is x * (1 / scale). Rows are no longer than
2^20 (Triton's largest tensor). A row that is not finite gets the scale NaN, which makes its products NaN, and zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import narrow, round_even
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.shapes import FLOATS, expect, expect_card, expect_input, expect_one_device, rows

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest magnitude of a row becomes. The lowest int8 is not used: integers are symmetric."""

STATIC_BLOCK = 1024


@triton.jit
def _quantize_row(
    x_ptr, weight_ptr, bias_ptr, inlier_ptr, q_ptr, scale_ptr, row_stride, input_stride, epsilon,
    INPUTS: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < INPUTS
    x = tl.load(x_ptr + row * row_stride + k * input_stride, mask=inside, other=0.0).to(tl.float32)
    if NORM == "layer":
        x = tl.where(inside, x - tl.sum(x, axis=0) / INPUTS, 0.0)
    if NORM != "none":
        x *= tl.div_rn(1.0, tl.sqrt_rn(tl.sum(x * x, axis=0) / INPUTS + epsilon))
        x *= tl.load(weight_ptr + k, mask=inside, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            x += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if inlier_ptr is not None:
        x = tl.where(tl.load(inlier_ptr + k, mask=inside, other=0) != 0, x, 0.0)
    largest = tl.max(tl.abs(x), axis=0)
    scale = tl.where(largest > 0, tl.div_rn(largest, LIMIT), 1.0) + tl.sum(x * 0.0, axis=0)
    ratio = x * tl.div_rn(1.0, scale)  # one division for a row: one for each number takes longer than to read it
    ratio = tl.where(ratio == ratio, ratio, 0.0)
    if q_ptr.dtype.element_ty == tl.int8:
        q = round_even(ratio).to(tl.int8)
    else:
        # The reciprocal may have taken the largest past the limit, by a rounding.
        q = narrow(tl.minimum(tl.maximum(ratio, -LIMIT), LIMIT), q_ptr.dtype.element_ty)
    tl.store(q_ptr + row * INPUTS + k, q, mask=inside)
    tl.store(scale_ptr + row, scale)


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


def quantized_rows(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    inliers: torch.Tensor | None,
    epsilon: float,
    norm: str,
    dtype: torch.dtype = torch.int8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q [..., K] of a dtype of `LIMITS`, and scales float32 [...], of a norm of x: "none", "rms" or "layer"."""
    q, scale = empty_rows(x, weight, bias, inliers, dtype)
    if q.numel() == 0:
        return q, scale.fill_(1.0)
    expect_card(x)
    matrix, block = rows(x), triton.next_power_of_2(x.shape[-1])
    wrap_triton(_quantize_row)[(len(matrix),)](
        matrix, weight, bias, inliers, q, scale, matrix.stride(0), matrix.stride(1), epsilon,
        INPUTS=x.shape[-1], NORM=norm, LIMIT=LIMITS[dtype], BLOCK=block, num_warps=min(max(block // 1024, 1), 16),
    )  # fmt: skip
    return q, scale


def empty_rows(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    inliers: torch.Tensor | None,
    dtype: torch.dtype = torch.int8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and scales without their numbers.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    expect_input(x)
    inputs = (x.shape[-1],)
    for name, tensor, dtypes in (
        ("weight", weight, FLOATS),
        ("bias", bias, FLOATS),
        ("inliers", inliers, (torch.bool,)),
    ):
        if tensor is not None:
            expect(name, tensor, inputs, dtypes)
    expect_one_device(x, weight, bias, inliers)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)


@operator("quantize_tokens")
def quantize_tokens(x: torch.Tensor, inliers: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q int8 [..., K] = x / scale rounded half to even, and scale float32 [...] = max|x of the row| / 127.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        inliers: bool [K], or None: all; what is False counts as 0 in q, and not for the scale.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    return quantized_rows(x, None, None, inliers, 0.0, "none")


@quantize_tokens.register_fake
def _(x: torch.Tensor, inliers: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_rows(x, None, None, inliers)


@operator("rms_norm_quantize")
def rms_norm_quantize(
    x: torch.Tensor, weight: torch.Tensor, inliers: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize_tokens` does of x / sqrt(mean(x^2) + epsilon) * weight over the last axis, float [K]."""
    return quantized_rows(x, weight, None, inliers, epsilon, "rms")


@rms_norm_quantize.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, inliers: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_rows(x, weight, None, inliers)


@operator("layer_norm_quantize")
def layer_norm_quantize(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, inliers: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize_tokens` does of (x - mean) / sqrt(variance + epsilon) * weight + bias, each float [K]."""
    return quantized_rows(x, weight, bias, inliers, epsilon, "layer")


@layer_norm_quantize.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, inliers: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_rows(x, weight, bias, inliers)


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
