"""The operators of int8 activations by int8 weights; scaled_gemm multiplies, row_kernel and tokens quantize.

A weight is int8 [N, K], one scale for each output. Sums are int32 and exact; scales, bias and activation are float32.
"""

from __future__ import annotations

from typing import Any

import torch

from qcompile.backends.triton.kernels.activations import DERIVATIVES
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized
from qcompile.backends.triton.kernels.scaled_gemm import Scaled, expect_activation, scaled_gemm
from qcompile.backends.triton.kernels.shapes import empty_product, expect_input
from qcompile.backends.triton.kernels.tokens import empty_static, quantized_static


@operator("int8_gemm")
def int8_gemm(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return activation(q @ weight^T * scale * weight_scale + bias), [..., N] in a dtype.

    Args:
        q: int8 [..., K].
        scale: float32 [...], by token, or [], one for all.
        weight: int8 [N, K].
        weight_scale: float32 [N].
        bias: float [N], or None.
        activation: "none", "gelu", "gelu_tanh", "relu" or "silu".
        dtype: float16, bfloat16 or float32.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    y = _empty(q, scale, weight, weight_scale, bias, activation, dtype)
    return scaled_gemm(Scaled(q, scale, weight, weight_scale, bias), None, activation, y)


@int8_gemm.register_fake
def _empty(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    expect_activation(activation, dtype)
    expect_input(q, (torch.int8,))
    given = Scaled(q, scale, weight, weight_scale, bias)
    return empty_product(q, len(weight), bias, *given.tensors, dtype=dtype)


@operator("int8_linear")
def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """Return `int8_gemm` of `quantize_tokens` of x, in the dtype of x; the gradient passes the rounding as it is."""
    y = _empty_linear(x, weight, weight_scale, bias, activation)
    q, scale, _ = quantized(Rows(x))
    return scaled_gemm(Scaled(q, scale, weight, weight_scale, bias), None, activation, y)


@int8_linear.register_fake
def _empty_linear(
    x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    q, scale, _ = Rows(x).empty_quantized()
    return _empty(q, scale, weight, weight_scale, bias, activation, x.dtype)


@operator("int8_linear_static")
def int8_linear_static(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Return `int8_gemm` of `quantize_static` of x by scale [], in the dtype of x; what saturates gets no gradient."""
    y = _empty_static_linear(x, scale, weight, weight_scale, bias, activation)
    q = quantized_static(x, scale)
    return scaled_gemm(Scaled(q, scale, weight, weight_scale, bias), None, activation, y)


@int8_linear_static.register_fake
def _empty_static_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    q = empty_static(x, scale)
    return _empty(q, scale, weight, weight_scale, bias, activation, x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, *scale, weight, weight_scale, bias, activation = inputs
    ctx.save_for_backward(x if scale or activation != "none" else None, *(scale or [None]), weight, weight_scale, bias)
    ctx.activation, ctx.dtype = activation, x.dtype


def _gradient(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
    """Return dx: that of the activation at what was before it, computed again, by the dequantized weight."""
    x, scale, weight, weight_scale, bias = ctx.saved_tensors
    if ctx.activation != "none":
        others = (weight, weight_scale, bias, "none")
        z = int8_linear(x, *others) if scale is None else int8_linear_static(x, scale, *others)
        dy = DERIVATIVES[ctx.activation](dy, z)
    dx = dy @ (weight * weight_scale[:, None]).to(ctx.dtype)
    if scale is None:
        return dx
    ratio = x.float() / scale
    return dx * ((ratio >= -128.5) & (ratio <= 127.5))


int8_linear.register_autograd(lambda ctx, dy: (_gradient(ctx, dy), *[None] * 4), setup_context=_keep)
int8_linear_static.register_autograd(lambda ctx, dy: (_gradient(ctx, dy), *[None] * 5), setup_context=_keep)
