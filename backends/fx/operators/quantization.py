"""Quantization: per tensor, per axis and in blocks; and products of quantized tensors."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.backends.fx.operators.convolution import conv
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.operators.types import converted
from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import NARROW_FLOATS, torch_type

_INTEGERS = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts to x."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    axis %= x.dim()
    if parameter.dim() == 1 and not block_size:
        return in_front(parameter, x.dim() - 1 - axis)
    if parameter.shape[axis] == x.shape[axis]:
        return parameter
    size = block_size or -(-x.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])


def rounded(x: Tensor, zero_point: Tensor | None, dtype: ir.DataType) -> Tensor:
    """Quotients to the nearest value of a type, ties to even, saturated."""
    if dtype not in _INTEGERS:
        return converted(x, dtype)
    low, high = _INTEGERS[dtype]
    shifted = torch.round(x) if zero_point is None else torch.round(x) + zero_point.to(x.dtype)
    return shifted.clamp(low, high).to(torch.int32).to(torch_type(dtype))


@operator("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    types: tuple[ir.DataType | None, ...],
    result: ir.DataType | None,
) -> Tensor:
    """X / scale + zero_point, rounded to the type of the zero point."""
    given = types[2] if zero_point is not None else None
    dtype = ir.DataType(output_dtype) if output_dtype else given or result or ir.DataType.UINT8
    kind = torch_type(precision) if precision else (torch.float32 if x.dtype is torch.int32 else x.dtype)
    scale = scale.to(torch.float32).to(kind) if scale.dtype in NARROW_FLOATS else scale.to(kind)
    quotient = x.to(kind) / spread(scale, x, axis, block_size)
    if dtype not in _INTEGERS:
        return converted(quotient, dtype, saturate)
    wide = torch.float32 if quotient.dtype in (torch.float16, torch.bfloat16) else quotient.dtype
    zero = None if zero_point is None else spread(zero_point.to(wide), x, axis, block_size)
    return rounded(quotient.to(wide), zero, dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero_point) * scale in the type of the scale."""
    kind = torch_type(output_dtype) if output_dtype else scale.dtype
    wide = torch.float32 if kind in (torch.float16, torch.bfloat16) or kind in NARROW_FLOATS else kind
    made = x.to(wide)
    if zero_point is not None:
        made = made - spread(zero_point.to(wide), x, axis, block_size)
    return (made * spread(scale.to(wide), x, axis, block_size)).to(kind)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X in uint8 over its own range with 0; the scale; the zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / safe).clamp(0, 255)
    return (torch.round(x / safe) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _real(x: Tensor, scale: Tensor, zero_point: Tensor, trailing: int) -> Tensor:
    """The numbers that integers stand for, in float64, with parameters of rows in front of some axes."""
    if scale.dim() == 1 and scale.numel() > 1:
        scale, zero_point = in_front(scale, trailing), in_front(zero_point, trailing)
    return (x.to(torch.float64) - zero_point.to(torch.float64)) * scale.to(torch.float64)


@operator("QLinearMatMul")
def q_linear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    types: tuple[ir.DataType | None, ...],
) -> Tensor:
    """The product of quantized matrices, quantized."""
    product = torch.matmul(_real(a, a_scale, a_zero_point, 1), _real(b, b_scale, b_zero_point, 0))
    return rounded(product / y_scale.to(torch.float64), y_zero_point, types[7] or ir.DataType.UINT8)


@operator("QLinearConv", settings_of=conv)
def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    types: tuple[ir.DataType | None, ...],
    **settings: Any,
) -> Tensor:
    """The convolution of quantized tensors, quantized; the bias is in steps of x_scale * w_scale."""
    left, right = _real(x, x_scale, x_zero_point, 0), _real(w, w_scale, w_zero_point, w.dim() - 1)
    shift = None if bias is None else bias.to(torch.float64) * x_scale.to(torch.float64) * w_scale.to(torch.float64)
    made = conv(left, right, shift, **settings)
    return rounded(made / y_scale.to(torch.float64), y_zero_point, types[7] or ir.DataType.UINT8)
