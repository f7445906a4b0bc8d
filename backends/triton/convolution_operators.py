"""Convolutions of integers in torch: on tensor cores through TF32, for there is no other that takes 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qcompile.backends.fx.operators.convolution import conv, conv_transpose
from qcompile.backends.fx.operators.elementwise import in_front
from qcompile.backends.fx.table import operator
from qcompile.backends.triton.integer_convolutions import CONVOLUTION, TRANSPOSED
from qcompile.backends.triton.products import DOMAIN


@operator(CONVOLUTION, domain=DOMAIN, settings_of=conv)
def integer_conv(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Conv((q - zero_point) * scale, weight * weight_scale, bias), the sums over integers."""
    return _rescaled(_sums(conv, q, zero_point, weight, settings), scale * weight_scale, bias)


@operator(TRANSPOSED, domain=DOMAIN, settings_of=conv_transpose)
def integer_conv_transpose(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """The same of ConvTranspose."""
    return _rescaled(_sums(conv_transpose, q, zero_point, weight, settings), scale * weight_scale, bias)


def _sums(
    function: Callable[..., Tensor], q: Tensor, zero_point: Tensor | None, weight: Tensor, settings: dict[str, Any]
) -> Tensor:
    """A convolution of integers in float32: of 9 bits and 8, so that TF32, with 11, multiplies them exactly."""
    x = q.to(torch.float32) if zero_point is None else q.to(torch.float32) - zero_point.to(torch.float32)
    with torch.backends.cudnn.flags(allow_tf32=True):
        return function(x, weight.to(torch.float32), **settings)


def _rescaled(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    made = sums * in_front(scale, sums.dim() - 2)
    return made if bias is None else made + in_front(bias, sums.dim() - 2)
