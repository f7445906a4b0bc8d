"""The operators of weights as 4-bit indices into a codebook; group_gemv, group_gemm, group_dequantize compute them.

The codebook may be any of 16 levels, as NF4's: Dettmers et al., "QLoRA" (2023), appendix E; its section 3 is the double
quantization of scales. Levels are looked up in shared memory, which holds each in another bank.
"""

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


@operator("nf4_gemv")
def nf4_gemv(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    scale_indices: torch.Tensor | None,
    levels: torch.Tensor | None,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return x @ (codebook[indices] * scales) + bias for few rows of x, [..., N]; differentiable with respect to x.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        words: int32 [W, N]: the indices, by packing, in 4 bits.
        codebook: float32 [16].
        scale: float [G, N]: the scales. With `scale_indices` float32 [ceil(G * N / 256)], of blocks of 256 scales that
            count output by output, in the order of [N, G]: the scales are levels[scale_indices] * scale + offset.
        scale_indices: uint8 [G, N], or None as the next two.
        levels: float32 [256].
        offset: float32 [].
        bias: float [N], or None.
        group_size: inputs that share a scale.
        plane: that of `Packed`.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    y = _empty(x, words, codebook, scale, scale_indices, levels, offset, bias, group_size, plane)
    weight = _weight(words, codebook, scale, scale_indices, levels, offset, group_size, plane, x.shape[-1])
    return gemv(x, weight, bias, y)


@operator("nf4_gemm")
def nf4_gemm(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    scale_indices: torch.Tensor | None,
    levels: torch.Tensor | None,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return the same as `nf4_gemv`, by tensor cores, for any number of rows of x."""
    y = _empty(x, words, codebook, scale, scale_indices, levels, offset, bias, group_size, plane)
    weight = _weight(words, codebook, scale, scale_indices, levels, offset, group_size, plane, x.shape[-1])
    return gemm(x, weight, bias, y)


@operator("nf4_dequantize")
def nf4_dequantize(
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    scale_indices: torch.Tensor | None,
    levels: torch.Tensor | None,
    offset: torch.Tensor | None,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return codebook[indices] * scales, computed in float32 and rounded once to a dtype, [K, N]."""
    weight = _weight(words, codebook, scale, scale_indices, levels, offset, group_size, plane, inputs)
    return group_dequantize.dequantized(weight, dtype)


@nf4_dequantize.register_fake
def _(*weight: Any) -> torch.Tensor:
    *given, dtype = weight
    return group_dequantize.empty(_weight(*given), dtype)


def _weight(
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    scale_indices: torch.Tensor | None,
    levels: torch.Tensor | None,
    offset: torch.Tensor | None,
    group_size: int,
    plane: int,
    inputs: int,
) -> GroupWeight:
    return GroupWeight(words, scale, 4, group_size, plane, inputs, None, codebook, scale_indices, levels, offset)


def _empty(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    scale_indices: torch.Tensor | None,
    levels: torch.Tensor | None,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    expect_input(x)
    weight = _weight(words, codebook, scale, scale_indices, levels, offset, group_size, plane, x.shape[-1])
    return empty_product(x, weight.outputs, bias, *weight.tensors)


def _dequantized(*given: Any, inputs: int, dtype: torch.dtype) -> Any:
    *tensors, _, group_size, plane = given
    return nf4_dequantize(*tensors, group_size, plane, inputs, dtype)


for _operator in (nf4_gemv, nf4_gemm):
    _operator.register_fake(_empty)
    differentiable(_operator, _dequantized)
