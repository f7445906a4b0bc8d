"""The operators of 8-bit floats (e4m3), by token and by output channel; scaled_gemm multiplies, row_kernel quantizes.

For cards that multiply them: compute capability 8.9 and more. Sums are float32 in the precision of the tensor cores,
which on 9.0 keep 14 bits of each addend beside the largest (DeepSeek-V3, 2024, section 3.3.2).
"""

from __future__ import annotations

from typing import Any

import torch

from qcompile.backends.triton.kernels.arithmetic import INTERPRETED
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized
from qcompile.backends.triton.kernels.scaled_gemm import Scaled, expect_activation, scaled_gemm
from qcompile.backends.triton.kernels.shapes import empty_product, expect_input
from qcompile.errors import UnsupportedError

E4M3 = torch.float8_e4m3fn
CAPABILITY = (8, 9)


def expect_float8(capability: tuple[int, int]) -> None:
    """Refuse a card without 8-bit floats.

    Raises:
        UnsupportedError: its compute capability is too low.
    """
    if capability < CAPABILITY:
        found = f"the card has compute capability {'.'.join(map(str, capability))}"
        raise UnsupportedError(
            "fp8", f"{found}, and 8-bit floats begin with 8.9", "Take a recipe of int8: w8a8-dynamic"
        )


def _expect_float8_on(x: torch.Tensor) -> None:
    if not INTERPRETED.value and x.device.type == "cuda":
        expect_float8(torch.cuda.get_device_capability(x.device))


@operator("fp8_quantize_tokens")
def fp8_quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q float8_e4m3fn [..., K] = x / scale rounded half to even, and scale float32 [...] = max|x| / 448.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
        UnsupportedError: the card has no 8-bit floats.
    """
    _expect_float8_on(x)
    q, scale, _ = quantized(Rows(x), E4M3)
    return q, scale


@fp8_quantize_tokens.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale, _ = Rows(x).empty_quantized(E4M3)
    return q, scale


@operator("fp8_gemm")
def fp8_gemm(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return q @ weight^T * scale * weight_scale + bias, [..., N] in a dtype.

    Args:
        q: float8_e4m3fn [..., K].
        scale: float32 [...], by token, or [], one for all.
        weight: float8_e4m3fn [N, K].
        weight_scale: float32 [N].
        bias: float [N], or None.
        dtype: float16, bfloat16 or float32.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
        UnsupportedError: the card has no 8-bit floats.
    """
    y = _empty(q, scale, weight, weight_scale, bias, dtype)
    _expect_float8_on(q)
    return scaled_gemm(Scaled(q, scale, weight, weight_scale, bias), None, "none", y)


@fp8_gemm.register_fake
def _empty(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    expect_activation("none", dtype)
    expect_input(q, (E4M3,))
    given = Scaled(q, scale, weight, weight_scale, bias)
    return empty_product(q, len(weight), bias, *given.tensors, dtype=dtype)


@operator("fp8_linear")
def fp8_linear(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return `fp8_gemm` of `fp8_quantize_tokens` of x, in the dtype of x; the gradient passes the rounding as it is."""
    y = _empty_linear(x, weight, weight_scale, bias)
    _expect_float8_on(x)
    q, scale, _ = quantized(Rows(x), E4M3)
    return scaled_gemm(Scaled(q, scale, weight, weight_scale, bias), None, "none", y)


@fp8_linear.register_fake
def _empty_linear(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    q, scale, _ = Rows(x).empty_quantized(E4M3)
    return _empty(q, scale, weight, weight_scale, bias, x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])
    ctx.dtype = inputs[0].dtype


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, weight_scale = ctx.saved_tensors
    return dy @ (weight.float() * weight_scale[:, None]).to(ctx.dtype), None, None, None


fp8_linear.register_autograd(_gradient, setup_context=_keep)
