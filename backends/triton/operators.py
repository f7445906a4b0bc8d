"""What the nodes of `products.DOMAIN` are in torch: kernels on the device, and plain torch where there is none.

Kernels run where `runtime.runs_kernels` says so. Elsewhere these functions compute the same
numbers with torch's own operators, sums of integers without rounding, see `_integer_product`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

import qcompile.backends.triton.kernels.gated
import qcompile.backends.triton.kernels.grouped
import qcompile.backends.triton.kernels.int8_gemm
import qcompile.backends.triton.kernels.llm_int8
import qcompile.backends.triton.kernels.nf4
import qcompile.backends.triton.kernels.norms
import qcompile.backends.triton.kernels.tokens  # noqa: F401 - these register the operators
from qcompile import processor
from qcompile.backends.fx.operators.quantization import spread
from qcompile.backends.fx.table import operator
from qcompile.backends.triton.codebook_linears import CODEBOOK_LINEAR
from qcompile.backends.triton.gates import GATED, GATED_QUANTIZE
from qcompile.backends.triton.grouped_linears import GROUPED
from qcompile.backends.triton.integer_linears import LINEAR, TOKENS
from qcompile.backends.triton.kernels.activations import FUNCTIONS
from qcompile.backends.triton.kernels.group_weight import SCALES_IN_BLOCK
from qcompile.backends.triton.kernels.packing import unpack
from qcompile.backends.triton.normalized_tokens import LAYER_NORM, RMS_NORM
from qcompile.backends.triton.outlier_linears import OUTLIERS
from qcompile.backends.triton.products import DOMAIN
from qcompile.backends.triton.residual_norms import ADD_LAYER_NORM, ADD_RMS_NORM
from qcompile.backends.triton.runtime import runs_kernels

_FEW_ROWS = 8
"""Most rows of x for which a product is one of a vector."""
_HAS_VNNI = processor.runs_target("avx512-vnni")
"""Asked once: what torch compiles cannot read what Linux says of the processor."""
_MOST_IN_INT32 = (2**31 - 1) // 2**14
"""How many products of two numbers in int8 an int32 holds the sum of."""


@operator(GROUPED, domain=DOMAIN)
def grouped_linear(
    x: Tensor,
    words: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    bits: int,
    group_size: int,
    plane: int,
) -> Tensor:
    """X @ ((integers - zero_point) * scale) + bias; integers [inputs, outputs], a scale for each group of inputs."""
    if runs_kernels(x):
        name = "grouped_gemv" if _is_vector(x) else "grouped_gemm"
        made: Tensor = getattr(torch.ops.qcompile, name)(x, words, scale, zero_point, bias, bits, group_size, plane)
        return made
    integers = unpack(words, bits, plane, x.shape[-1]).to(x.dtype)
    shift: Tensor | int = 1 << (bits - 1)
    if zero_point is not None:
        shift = spread(zero_point.to(x.dtype), integers, 0, group_size)
    return _product(x, (integers - shift) * spread(scale, integers, 0, group_size), bias)


@operator(CODEBOOK_LINEAR, domain=DOMAIN)
def codebook_linear(
    x: Tensor,
    words: Tensor,
    codebook: Tensor,
    scale: Tensor,
    scale_indices: Tensor | None = None,
    levels: Tensor | None = None,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group_size: int,
    plane: int,
) -> Tensor:
    """X @ (codebook[indices] * scales) + bias, the scales in floats, or in 8 bits: see `kernels.nf4.nf4_gemv`."""
    if runs_kernels(x):
        name = "nf4_gemv" if _is_vector(x) else "nf4_gemm"
        scales = (scale, scale_indices, levels, offset)
        made: Tensor = getattr(torch.ops.qcompile, name)(x, words, codebook, *scales, bias, group_size, plane)
        return made
    if scale_indices is not None and levels is not None and offset is not None:
        each = levels[scale_indices.T.reshape(-1).long()]
        blocks = scale.repeat_interleave(SCALES_IN_BLOCK)[: each.numel()]
        scale = (each * blocks + offset).reshape(scale_indices.T.shape).T
    values = codebook[unpack(words, 4, plane, x.shape[-1]).long()]
    return _product(x, values * spread(scale, values, 0, group_size), bias)


@operator(TOKENS, domain=DOMAIN)
def quantize_tokens(x: Tensor, inliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric int8 of each row along the last axis, and its scale max|x| / 127, 1 where the row is all zero.

    Channels that are no inliers are 0, and do not count for the scale.
    """
    if runs_kernels(x):
        made: tuple[Tensor, Tensor] = torch.ops.qcompile.quantize_tokens(x, inliers)
        return made
    x = x if inliers is None else torch.where(inliers, x, torch.zeros_like(x))
    step = x.abs().amax(-1) / 127
    scale = torch.where(step == 0, torch.ones_like(step), step)
    return (x / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8), scale


@operator(RMS_NORM, domain=DOMAIN)
def rms_norm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of RMSNormalization(x + residual, weight) over the last axis, and the sum."""
    if runs_kernels(x):
        made: tuple[Tensor, Tensor, Tensor]
        made = torch.ops.qcompile.rms_norm_quantize(x, residual, weight, None, epsilon)
        return made
    total = x if residual is None else x + residual
    return *quantize_tokens(functional.rms_norm(total, weight.shape, weight, epsilon)), total


@operator(LAYER_NORM, domain=DOMAIN)
def layer_norm_quantize(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None = None, *, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of LayerNormalization(x + residual, weight, bias) over the last axis, and the sum."""
    if runs_kernels(x):
        made: tuple[Tensor, Tensor, Tensor]
        made = torch.ops.qcompile.layer_norm_quantize(x, residual, weight, bias, None, epsilon)
        return made
    total = x if residual is None else x + residual
    return *quantize_tokens(functional.layer_norm(total, weight.shape, weight, bias, epsilon)), total


@operator(ADD_RMS_NORM, domain=DOMAIN)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNormalization(x + residual, weight) over the last axis, and the sum."""
    if runs_kernels(x):
        made: tuple[Tensor, Tensor] = torch.ops.qcompile.add_rms_norm(x, residual, weight, epsilon)
        return made
    total = x + residual
    return functional.rms_norm(total, weight.shape, weight, epsilon), total


@operator(ADD_LAYER_NORM, domain=DOMAIN)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """LayerNormalization(x + residual, weight, bias) over the last axis, and the sum."""
    if runs_kernels(x):
        made: tuple[Tensor, Tensor] = torch.ops.qcompile.add_layer_norm(x, residual, weight, bias, epsilon)
        return made
    total = x + residual
    return functional.layer_norm(total, weight.shape, weight, bias, epsilon), total


@operator(GATED, domain=DOMAIN)
def gated(gate: Tensor, up: Tensor, *, activation: str) -> Tensor:
    """activation(gate) * up."""
    if runs_kernels(up):
        made: Tensor = torch.ops.qcompile.gated(gate, up, activation)
        return made
    return FUNCTIONS[activation](gate) * up


@operator(GATED_QUANTIZE, domain=DOMAIN)
def gated_quantize(gate: Tensor, up: Tensor, *, activation: str) -> tuple[Tensor, Tensor]:
    """Symmetric int8 of each row of that, and its scale, as `quantize_tokens` makes them."""
    if runs_kernels(up):
        made: tuple[Tensor, Tensor] = torch.ops.qcompile.gated_quantize(gate, up, activation)
        return made
    return quantize_tokens(gated(gate, up, activation=activation))


@operator(LINEAR, domain=DOMAIN)
def integer_linear(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    sums: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """(q - zero_point) * scale @ (weight * weight_scale)^T + bias, the product in integers.

    uint8 becomes int8 less 128, so does its zero point; what it adds to each output, scale * zero_point * sums, goes
    into the bias.
    """
    if q.dtype is torch.uint8:
        q = (q.to(torch.int16) - 128).to(torch.int8)
        zero_point = (0 if zero_point is None else zero_point.to(torch.float32)) - torch.full_like(scale, 128)
    if zero_point is not None:
        shift = -scale * zero_point.to(torch.float32) * sums
        bias = shift if bias is None else bias + shift
    if runs_kernels(q):
        made: Tensor = torch.ops.qcompile.int8_gemm(q, scale, weight, weight_scale, bias, "none", torch.float32)
        return made
    made = _integer_product(q, weight) * (scale if scale.dim() == 0 else scale.unsqueeze(-1)) * weight_scale
    return made if bias is None else made + bias


@operator(OUTLIERS, domain=DOMAIN)
def outlier_linear(
    q: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x: Tensor,
    outliers: Tensor,
    columns: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Q * scale @ (weight * weight_scale)^T + x[.., outliers] @ columns^T + bias; columns [outputs, outliers]."""
    if runs_kernels(q):
        given = (q, scale, weight, weight_scale, x, outliers, columns, bias)
        made: Tensor = torch.ops.qcompile.llm_int8_gemm(*given)
        return made
    inliers = integer_linear(q, scale, None, weight, weight_scale, weight_scale, bias)
    return inliers + x[..., outliers.long()] @ columns.T


def _integer_product(q: Tensor, weight: Tensor) -> Tensor:
    """Q @ weight^T of int8, the exact sums rounded to float32: [.., inputs], [outputs, inputs] -> [.., outputs].

    torch's product of integers takes an eighth of the time of one in float32, where the processor has VNNI (64 x 1536 x
    384, two threads, Zen 5, torch 2.13). Others may saturate the sum of two products: there it is computed in float64,
    which holds every sum of less than 2**38 of them.
    """
    if weight.shape[-1] <= _MOST_IN_INT32 and not q.is_cuda and _HAS_VNNI:
        sums = torch._int_mm(q.reshape(-1, q.shape[-1]), weight.T)
        return sums.reshape(*q.shape[:-1], weight.shape[0]).to(torch.float32)
    return (q.to(torch.float64) @ weight.to(torch.float64).T).to(torch.float32)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made = x @ weight
    return made if bias is None else made + bias


def _is_vector(x: Tensor) -> bool:
    """Whether there are few rows; False where torch traces for all numbers of them, of which none is asked."""
    return bool(statically_known_true(x.numel() // max(x.shape[-1], 1) <= _FEW_ROWS))
