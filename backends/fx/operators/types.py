"""Operators that change the type of a tensor."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import BITS, NARROW_FLOATS, narrowed, torch_type, wrapped
from qcompile.errors import UnsupportedOperator

_WITHOUT_INFINITY = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def converted(x: Tensor, dtype: ir.DataType, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The tensor in a type of ONNX.

    To an integer: towards zero, then the lowest bits. To 8 bits of float: what is too large becomes the largest, or
    with saturate=0 infinite (NaN where the type has no infinity).
    """
    if dtype in BITS:
        return wrapped(x.to(torch.float32) if x.dtype in NARROW_FLOATS else x, dtype)
    if dtype == ir.DataType.FLOAT4E2M1:
        return narrowed(x.to(torch.float32), dtype)
    kind = torch_type(dtype)
    if kind is torch.float8_e8m0fnu:
        return _exponents(x.to(torch.float32), saturate, round_mode)
    if kind in NARROW_FLOATS:
        return _narrow(x.to(torch.float32), kind, saturate)
    if x.is_floating_point() and not kind.is_floating_point and kind is not torch.bool:
        if x.dtype in NARROW_FLOATS:
            x = x.to(torch.float32)
        return x.to(torch.int64).to(kind) if not kind.is_complex else x.to(kind)
    return x.to(torch.float32).to(kind) if x.dtype in NARROW_FLOATS else x.to(kind)


def _narrow(x: Tensor, kind: torch.dtype, saturate: int) -> Tensor:
    most = torch.finfo(kind).max
    if saturate:
        return torch.where(x.isnan(), x, x.clamp(-most, most)).to(kind)
    made = x.to(kind)
    if kind not in _WITHOUT_INFINITY:
        return made
    # Some versions of torch saturate here; what is half a step above the largest is no number.
    unlimited = made.to(torch.float32)
    beyond = x.isinf() | (unlimited.abs() >= most) & (x.abs() > most * (1 + 2.0**-5))
    return torch.where(beyond, torch.nan, unlimited).to(kind)


def _exponents(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """Powers of two: E8M0. Raises UnsupportedOperator for a mode that is none of up, down, nearest."""
    if round_mode not in ("up", "down", "nearest"):
        raise UnsupportedOperator("Cast", f"the round_mode {round_mode!r} is not known", "Use up, down or nearest")
    size = x.abs()
    fraction, exponent = torch.frexp(size)  # size = fraction * 2 ** exponent, fraction in [1/2, 1)
    power = exponent - 1
    if round_mode == "up":
        power = torch.where(fraction > 0.5, power + 1, power)
    elif round_mode == "nearest":
        power = torch.where(fraction >= 0.75, power + 1, power)
    bits = torch.where(size == 0, 0, power + 127)
    if saturate:
        bits = torch.where(size.isinf(), 254, bits.clamp(0, 254))
    else:
        bits = torch.where((bits > 254) | size.isinf(), 255, bits.clamp(min=0))
    bits = torch.where(x.isnan(), 255, bits)
    return bits.to(torch.uint8).view(torch.float8_e8m0fnu)


@operator("Cast")
def cast(x: Tensor, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The tensor in another type."""
    return converted(x, ir.DataType[to] if isinstance(to, str) else ir.DataType(to), saturate, round_mode)


@operator("CastLike")
def cast_like(
    x: Tensor,
    target: Tensor,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    types: tuple[ir.DataType | None, ...],
) -> Tensor:
    """The tensor in the type of another."""
    kind = types[1]
    if kind is None:
        return x.to(target.dtype)
    return converted(x, kind, saturate, round_mode)


@operator("BitCast")
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The bits read as another type of the same size."""
    if ir.DataType(to) in BITS or ir.DataType(to) == ir.DataType.FLOAT4E2M1:
        raise UnsupportedOperator("BitCast", f"{ir.DataType(to).name} is carried in another type", "Cast it instead")
    return x.contiguous().view(torch_type(to))
