"""The operators of integer weights in groups; group_gemv, group_gemm and group_dequantize compute them."""

from __future__ import annotations

from typing import Any

import torch

from qcompile.backends.triton.kernels import group_dequantize
from qcompile.backends.triton.kernels.gradients import differentiable
from qcompile.backends.triton.kernels.group_gemm import gemm
from qcompile.backends.triton.kernels.group_gemv import gemv
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.registration import operator
from qcompile.backends.triton.kernels.shapes import empty_product, expect_input


@operator("grouped_gemv")
def grouped_gemv(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return x @ weight + bias for few rows of x, [..., N] in the dtype of x; differentiable with respect to x.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        words: int32 [W, N] of packing.
        scale: float [G, N].
        zero_point: uint8 [G, N]; None: 2^(bits - 1).
        bias: float [N], or None.
        bits: 2, 3, 4 or 8.
        group_size: inputs that share a scale.
        plane: that of `Packed`.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    y = _empty(x, words, scale, zero_point, bias, bits, group_size, plane)
    return gemv(x, GroupWeight(words, scale, bits, group_size, plane, x.shape[-1], zero_point), bias, y)


@operator("grouped_gemm")
def grouped_gemm(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return the same as `grouped_gemv`, by tensor cores, for any number of rows of x."""
    y = _empty(x, words, scale, zero_point, bias, bits, group_size, plane)
    return gemm(x, GroupWeight(words, scale, bits, group_size, plane, x.shape[-1], zero_point), bias, y)


@operator("grouped_dequantize")
def grouped_dequantize(
    words: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bits: int,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weight [K, N] in a dtype: (value - zero_point) * scale, computed in float32 and rounded once.

    Args:
        words: as in `grouped_gemv`, and so are the next five.
        scale: of the weight.
        zero_point: of the weight.
        bits: of the weight.
        group_size: of the weight.
        plane: of the weight.
        inputs: K.
        dtype: float16, bfloat16 or float32.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    return group_dequantize.dequantized(GroupWeight(words, scale, bits, group_size, plane, inputs, zero_point), dtype)


def _empty(
    x: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    expect_input(x)
    weight = GroupWeight(words, scale, bits, group_size, plane, x.shape[-1], zero_point)
    return empty_product(x, weight.outputs, bias, *weight.tensors)


@grouped_dequantize.register_fake
def _(words: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, *numbers: Any) -> torch.Tensor:
    bits, group_size, plane, inputs, dtype = numbers
    return group_dequantize.empty(GroupWeight(words, scale, bits, group_size, plane, inputs, zero_point), dtype)


def _dequantized(*given: Any, inputs: int, dtype: torch.dtype) -> Any:
    words, scale, zero_point, _, *numbers = given
    return grouped_dequantize(words, scale, zero_point, *numbers, inputs, dtype)


for _operator in (grouped_gemv, grouped_gemm):
    _operator.register_fake(_empty)
    differentiable(_operator, _dequantized)
