"""Weights in groups, what they stand for in float64, and how far a product may be from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from qcompile.backends.triton.kernels.packing import pack

EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding a number to a dtype (half of the last place)."""

DTYPES = tuple(EPSILON)


def draw(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Return normal numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(device)


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Arguments of the operators behind x, and the weight that they stand for."""

    words: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bias: torch.Tensor | None
    bits: int
    group_size: int
    plane: int
    weight: torch.Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.words, self.scale, self.zero_point, self.bias, self.bits, self.group_size, self.plane


def grouped(
    inputs: int,
    outputs: int,
    bits: int = 4,
    group_size: int = 32,
    asymmetric: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Grouped:
    """Return a random weight; its scale and bias are of a dtype."""
    source = torch.Generator().manual_seed(inputs + 1000 * outputs + bits)
    groups = -(-inputs // group_size)
    integers = torch.randint(0, 1 << bits, (inputs, outputs), generator=source, dtype=torch.uint8)
    scale = (torch.rand(groups, outputs, generator=source) + 0.5).to(dtype) / 8
    bias = torch.randn(outputs, generator=source).to(dtype)
    zero = torch.randint(0, 1 << bits, (groups, outputs), generator=source, dtype=torch.uint8) if asymmetric else None
    given = integers if asymmetric else (integers.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    packed = pack(given, bits)
    rows = torch.arange(inputs) // group_size
    offset = zero[rows].double() if zero is not None else float(1 << (bits - 1))
    weight = (integers.double() - offset) * scale[rows].double()
    moved = [None if tensor is None else tensor.to(device) for tensor in (packed.words, scale, zero, bias, weight)]
    words, scale_there, zero_there, bias_there, weight_there = moved
    assert words is not None
    assert scale_there is not None
    assert weight_there is not None
    return Grouped(words, scale_there, zero_there, bias_there, bits, group_size, packed.plane, weight_there)


def close(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, weight_error: float = 0.0
) -> None:
    """Compare with x @ weight + bias in float64, within what rounding may do.

    The limit for each output is that of sums in float32 in any order, which is K of its last places of the sum of
    magnitudes; what the rounding of the weight to a dtype may do, its `weight_error` of the same sum; and half a last
    place of y (a whole one, for a sum beside a middle).
    """
    exact, magnitudes = x.double() @ weight.double(), x.double().abs() @ weight.double().abs()
    if bias is not None:
        exact, magnitudes = exact + bias.double(), magnitudes + bias.double().abs()
    inner = magnitudes * ((x.shape[-1] + 8) * EPSILON[torch.float32] + weight_error)
    limit = inner + (exact.abs() + inner) * EPSILON[y.dtype] * 1.01 + 2.0**-24
    assert y.shape == exact.shape
    worst = ((y.double() - exact).abs() - limit).max() if y.numel() else torch.tensor(0.0)
    assert worst <= 0, f"{float(worst)} past the limit"
