from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompile.backends.triton.kernels.activations import FUNCTIONS
from qcompile.backends.triton.kernels.gated import gated, gated_quantize
from qcompile.errors import InputError
from tests.backends.triton.kernels.grouped_cases import DTYPES, EPSILON, draw
from tests.backends.triton.kernels.quantized_rows import SINGLE, expect_nearest

INNER = 16 * SINGLE
"""What exponential, error function and three products in float32 may be off by, of gate * up."""


def _drawn(dtype: torch.dtype, device: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gate and up, as views of one product."""
    both = draw(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device) * 2
    gate, up = both.split(shape[-1], dim=-1)
    return gate, up


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 33), (2, 3, 7), (1, 1), (5,), (2, 1025)], ids=str)
def test_the_product_is_rounded_once(shape: tuple[int, ...], dtype: torch.dtype, activation: str, device: str) -> None:
    gate, up = _drawn(dtype, device, *shape)
    y, exact = gated(gate, up, activation), FUNCTIONS[activation](gate.double()) * up.double()
    limit = exact.abs() * EPSILON[dtype] * 1.01 + INNER * (gate.double() * up.double()).abs() + 2.0**-24
    assert (y.dtype, y.shape, y.is_contiguous()) == (dtype, gate.shape, True)
    assert ((y.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_quantized_in_float(dtype: torch.dtype, activation: str, device: str) -> None:
    gate, up = _drawn(dtype, device, 4, 70)
    exact = FUNCTIONS[activation](gate.double()) * up.double()
    largest = (gate.double() * up.double()).abs().amax(-1) / exact.abs().amax(-1)
    expect_nearest(gated_quantize(gate, up, activation), exact, INNER * float(largest.max()))


def test_columns_may_be_strided_and_rows_none(device: str) -> None:
    gate, up = draw(40, 3, device=device).T, draw(3, 40, 2, device=device)[..., 1]
    torch.testing.assert_close(gated(gate, up, "silu"), FUNCTIONS["silu"](gate) * up)
    assert gated(gate[:0], up[:0], "silu").shape == (0, 40)
    q, scale = gated_quantize(gate[:0], up[:0], "silu")
    assert (q.shape, scale.shape) == ((0, 40), (0,))


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_the_gradient_is_that_of_both(activation: str, device: str) -> None:
    gate, up = (each.detach().requires_grad_() for each in _drawn(torch.float32, device, 3, 20))
    dy = draw(3, 20, device=device)
    gated(gate, up, activation).backward(dy)
    wide = [each.detach().double().requires_grad_() for each in (gate, up)]
    (FUNCTIONS[activation](wide[0]) * wide[1]).backward(dy.double())
    for each, exact in zip((gate, up), wide, strict=True):
        assert each.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(each.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_torch_accepts_the_operators(device: str) -> None:
    gate, up = _drawn(torch.float32, device, 2, 9)
    torch.library.opcheck(gated_quantize, (gate, up, "gelu"))
    torch.library.opcheck(gated, (gate.detach().requires_grad_(), up.detach().requires_grad_(), "silu"))


@pytest.mark.parametrize("operator", [gated, gated_quantize])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3), torch.zeros(1), "silu"), "other: shape"),
        ((torch.zeros(3), torch.zeros(3).half(), "silu"), "other: dtype"),
        ((torch.zeros(3), torch.zeros(3), "none"), "activation"),
        ((torch.zeros(()), torch.zeros(()), "silu"), "scalar"),
    ],
)
def test_what_does_not_fit_is_refused(operator: Any, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        operator(*arguments)
