"""Norms over the last axis, behind the sum with a residual, quantized for each token or not; row_kernel has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.row_kernel import Rows, quantized, written


@operator("rms_norm_quantize")
def rms_norm_quantize(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    inliers: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `quantize_tokens` does of s / sqrt(mean(s^2) + epsilon) * weight, and s = x + residual.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        residual: of the shape and dtype of x, strided as it is; None: s is x, and what is returned has no elements.
        weight: float [K].
        inliers: as in `quantize_tokens`.
        epsilon: of the norm.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    return quantized(_rms(x, residual, weight, inliers, epsilon))


@operator("layer_norm_quantize")
def layer_norm_quantize(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    inliers: torch.Tensor | None,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same of (s - mean) / sqrt(variance + epsilon) * weight + bias; bias is float [K], or None."""
    return quantized(_layer(x, residual, weight, bias, inliers, epsilon))


@operator("add_rms_norm")
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s / sqrt(mean(s^2) + epsilon) * weight, and s = x + residual, both [..., K] in the dtype of x.

    Differentiable with respect to x and residual.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        residual: of the shape and dtype of x, strided as it is.
        weight: float [K].
        epsilon: of the norm.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    return written(_rms(x, residual, weight, None, epsilon))


@operator("add_layer_norm")
def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same of (s - mean) / sqrt(variance + epsilon) * weight + bias; bias is float [K], or None."""
    return written(_layer(x, residual, weight, bias, None, epsilon))


def _rms(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    inliers: torch.Tensor | None,
    epsilon: float,
) -> Rows:
    return Rows(x, residual, "none", "rms", weight, None, inliers, epsilon)


def _layer(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    inliers: torch.Tensor | None,
    epsilon: float,
) -> Rows:
    return Rows(x, residual, "none", "layer", weight, bias, inliers, epsilon)


rms_norm_quantize.register_fake(lambda *given: _rms(*given).empty_quantized())
layer_norm_quantize.register_fake(lambda *given: _layer(*given).empty_quantized())
add_rms_norm.register_fake(lambda x, residual, weight, epsilon: _rms(x, residual, weight, None, epsilon).empty())
add_layer_norm.register_fake(
    lambda x, residual, weight, bias, epsilon: _layer(x, residual, weight, bias, None, epsilon).empty()
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[2])
    ctx.others, ctx.epsilon = len(inputs) - 2, inputs[-1]


def _gradient(centered: bool) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    """Return the gradient of a norm of s with respect to both that s is the sum of; centered: the mean is taken off."""

    def backward(ctx: Any, dy: torch.Tensor, dsum: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        s, given = total.float(), dy.float() * weight
        if centered:
            s, given = s - s.mean(-1, keepdim=True), given - given.mean(-1, keepdim=True)
        factor = torch.rsqrt(s.square().mean(-1, keepdim=True) + ctx.epsilon)
        normalized = s * factor
        change = (given - normalized * (given * normalized).mean(-1, keepdim=True)) * factor
        dx = (dsum + change).to(total.dtype)
        return dx, dx, *[None] * ctx.others

    return backward


add_rms_norm.register_autograd(_gradient(centered=False), setup_context=_keep)
add_layer_norm.register_autograd(_gradient(centered=True), setup_context=_keep)
