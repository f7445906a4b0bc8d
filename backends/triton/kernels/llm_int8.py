"""The operators of LLM.int8(): inliers in int8, the few input channels that are outliers in float, in one launch.

Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale" (2022), section 3.2. The int8
product keeps its shape: rows of outliers are 0 in the int8 weight, and columns of outliers 0 in q.
"""

from __future__ import annotations

from typing import Any

import torch

from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized
from qcompile.backends.triton.kernels.scaled_gemm import Outliers, Scaled, scaled_gemm
from qcompile.backends.triton.kernels.shapes import empty_product, expect_input


@operator("llm_int8_gemm")
def llm_int8_gemm(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x: torch.Tensor,
    outliers: torch.Tensor,
    outlier_weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return q @ weight^T * scale * weight_scale + x[:, outliers] @ outlier_weight^T + bias, in the dtype of x.

    Args:
        q: int8 [..., K].
        scale: float32 [...].
        weight: int8 [N, K].
        weight_scale: float32 [N].
        x: float [..., K], strided as it is.
        outliers: int32 [O], each of 0 to K - 1, which is not checked; O may be 0.
        outlier_weight: [N, O] in the dtype of x.
        bias: float [N], or None.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    y = _empty(q, scale, weight, weight_scale, x, outliers, outlier_weight, bias)
    scaled = Scaled(q, scale, weight, weight_scale, bias)
    return scaled_gemm(scaled, Outliers(x, outliers, outlier_weight), "none", y)


@llm_int8_gemm.register_fake
def _empty(
    q: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x: torch.Tensor,
    outliers: torch.Tensor,
    outlier_weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    expect_input(q, (torch.int8,))
    scaled = Scaled(q, scale, weight, weight_scale, bias)
    Outliers(x, outliers, outlier_weight).expect(scaled)
    return empty_product(x, len(weight), bias, *scaled.tensors, outliers, outlier_weight)


@operator("llm_int8_linear")
def llm_int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    inliers: torch.Tensor,
    outliers: torch.Tensor,
    outlier_weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return `llm_int8_gemm` of `quantize_tokens` of the inliers of x, bool [K]; differentiable with respect to x."""
    y = _empty_linear(x, weight, weight_scale, inliers, outliers, outlier_weight, bias)
    q, scale, _ = quantized(Rows(x, inliers=inliers))
    scaled = Scaled(q, scale, weight, weight_scale, bias)
    return scaled_gemm(scaled, Outliers(x, outliers, outlier_weight), "none", y)


@llm_int8_linear.register_fake
def _empty_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    inliers: torch.Tensor,
    outliers: torch.Tensor,
    outlier_weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    q, scale, _ = Rows(x, inliers=inliers).empty_quantized()
    return _empty(q, scale, weight, weight_scale, x, outliers, outlier_weight, bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[1:6])
    ctx.dtype = inputs[0].dtype


def _gradient(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, weight_scale, inliers, outliers, outlier_weight = ctx.saved_tensors
    dx = (dy @ (weight * weight_scale[:, None]).to(ctx.dtype)) * inliers
    return dx.index_add(-1, outliers, dy @ outlier_weight), *[None] * 6


llm_int8_linear.register_autograd(_gradient, setup_context=_keep)
