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
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return x @ (codebook[indices] * scale) + bias for few rows of x, [..., N]; differentiable with respect to x.

    Args:
        x: float16, bfloat16 or float32 [..., K], strided as it is.
        words: int32 [W, N]: the indices, by packing, in 4 bits.
        codebook: float32 [16].
        scale: float [G, N].
        bias: float [N], or None.
        group_size: inputs that share a scale.
        plane: that of `Packed`.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """
    y = _empty(x, words, codebook, scale, bias, group_size, plane)
    return gemv(x, _single(words, codebook, scale, group_size, plane, x.shape[-1]), bias, y)


@operator("nf4_gemm")
def nf4_gemm(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return the same as `nf4_gemv`, by tensor cores, for any number of rows of x."""
    y = _empty(x, words, codebook, scale, bias, group_size, plane)
    return gemm(x, _single(words, codebook, scale, group_size, plane, x.shape[-1]), bias, y)


@operator("nf4_dequantize")
def nf4_dequantize(
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return codebook[indices] * scale, computed in float32 and rounded once to a dtype, [K, N]."""
    return group_dequantize.dequantized(_single(words, codebook, scale, group_size, plane, inputs), dtype)


@operator("nf4_double_gemv")
def nf4_double_gemv(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return the same as `nf4_gemv`, with scales in 8 bits: levels[indices] * scale[block] + offset.

    Args:
        x: as in `nf4_gemv`, and so are words, codebook, bias, group_size and plane.
        words: of the weight.
        codebook: of the weight.
        indices: uint8 [G, N].
        levels: float32 [256].
        scale: float32 [ceil(G * N / 256)]: of blocks of 256 that count output by output, in the order of [N, G].
        offset: float32 [].
        bias: of the outputs.
        group_size: of the weight.
        plane: of the weight.
    """
    y = _empty_double(x, words, codebook, indices, levels, scale, offset, bias, group_size, plane)
    weight = _double(words, codebook, indices, levels, scale, offset, group_size, plane, x.shape[-1])
    return gemv(x, weight, bias, y)


@operator("nf4_double_gemm")
def nf4_double_gemm(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    """Return the same as `nf4_double_gemv`, by tensor cores, for any number of rows of x."""
    y = _empty_double(x, words, codebook, indices, levels, scale, offset, bias, group_size, plane)
    weight = _double(words, codebook, indices, levels, scale, offset, group_size, plane, x.shape[-1])
    return gemm(x, weight, bias, y)


@operator("nf4_double_dequantize")
def nf4_double_dequantize(
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the weight [K, N] with scales in 8 bits, in a dtype."""
    weight = _double(words, codebook, indices, levels, scale, offset, group_size, plane, inputs)
    return group_dequantize.dequantized(weight, dtype)


def _single(
    words: torch.Tensor, codebook: torch.Tensor, scale: torch.Tensor, group_size: int, plane: int, inputs: int
) -> GroupWeight:
    return GroupWeight(words, scale, 4, group_size, plane, inputs, codebook=codebook)


def _double(
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    group_size: int,
    plane: int,
    inputs: int,
) -> GroupWeight:
    return GroupWeight(words, scale, 4, group_size, plane, inputs, None, codebook, indices, levels, offset)


def _empty(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    expect_input(x)
    weight = _single(words, codebook, scale, group_size, plane, x.shape[-1])
    return empty_product(x, weight.outputs, bias, *weight.tensors)


def _empty_double(
    x: torch.Tensor,
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
) -> torch.Tensor:
    expect_input(x)
    weight = _double(words, codebook, indices, levels, scale, offset, group_size, plane, x.shape[-1])
    return empty_product(x, weight.outputs, bias, *weight.tensors)


@nf4_dequantize.register_fake
def _(
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return group_dequantize.empty(_single(words, codebook, scale, group_size, plane, inputs), dtype)


@nf4_double_dequantize.register_fake
def _(
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    weight = _double(words, codebook, indices, levels, scale, offset, group_size, plane, inputs)
    return group_dequantize.empty(weight, dtype)


def _weight(
    words: torch.Tensor,
    codebook: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> Any:
    return nf4_dequantize(words, codebook, scale, group_size, plane, inputs, dtype)


def _double_weight(
    words: torch.Tensor,
    codebook: torch.Tensor,
    indices: torch.Tensor,
    levels: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    group_size: int,
    plane: int,
    inputs: int,
    dtype: torch.dtype,
) -> Any:
    return nf4_double_dequantize(words, codebook, indices, levels, scale, offset, group_size, plane, inputs, dtype)


for _operator in (nf4_gemv, nf4_gemm):
    _operator.register_fake(_empty)
    differentiable(_operator, _weight)
for _operator in (nf4_double_gemv, nf4_double_gemm):
    _operator.register_fake(_empty_double)
    differentiable(_operator, _double_weight)
