"""Operators that draw random numbers, from torch's generator: nobody else's draws are the same, whatever the seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompile.backends.fx.host import device_of
from qcompile.backends.fx.table import operator
from qcompile.backends.fx.types import torch_type

_SEEDED = 0.0


@operator("RandomNormalLike", random=True)
def random_normal_like(
    x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float = _SEEDED
) -> Tensor:
    """Normally distributed, in the shape of x."""
    del seed
    made = torch.randn(x.shape, device=x.device) * scale + mean
    return made.to(x.dtype if dtype is None else torch_type(dtype))


@operator("RandomUniformLike", random=True)
def random_uniform_like(
    x: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float = _SEEDED
) -> Tensor:
    """Evenly distributed, in the shape of x."""
    del seed
    made = torch.rand(x.shape, device=x.device) * (high - low) + low
    return made.to(x.dtype if dtype is None else torch_type(dtype))


@operator("RandomNormal", random=True)
def random_normal(
    *,
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float = _SEEDED,
    shape: Sequence[int],
    like: object,
) -> Tensor:
    """Normally distributed."""
    del seed
    return (torch.randn(tuple(shape), device=device_of(like)) * scale + mean).to(torch_type(dtype))


@operator("RandomUniform", random=True)
def random_uniform(
    *,
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float = _SEEDED,
    shape: Sequence[int],
    like: object,
) -> Tensor:
    """Evenly distributed."""
    del seed
    return (torch.rand(tuple(shape), device=device_of(like)) * (high - low) + low).to(torch_type(dtype))


@operator("Bernoulli", random=True)
def bernoulli(x: Tensor, *, dtype: int | None = None, seed: float = _SEEDED) -> Tensor:
    """1 with the probability x, else 0."""
    del seed
    return torch.bernoulli(x).to(x.dtype if dtype is None else torch_type(dtype))
