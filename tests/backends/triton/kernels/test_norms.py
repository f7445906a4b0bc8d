from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qcompile.backends.triton.kernels.norms import (
    add_layer_norm,
    add_rms_norm,
    layer_norm_quantize,
    rms_norm_quantize,
)
from qcompile.errors import InputError
from tests.backends.triton.kernels.grouped_cases import DTYPES, EPSILON, draw
from tests.backends.triton.kernels.quantized_rows import SINGLE, expect_nearest

EXACT = 1e-5
INNER = 80 * SINGLE
"""What a norm of 70 numbers in float32 may be off by, of the largest of its row."""


def _exact(s: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, centered: bool) -> torch.Tensor:
    """Return a norm in float64."""
    wide = s.double() - (s.double().mean(-1, keepdim=True) if centered else 0)
    made = wide / (wide.square().mean(-1, keepdim=True) + EXACT).sqrt() * weight.double()
    return made if bias is None else made + bias.double()


def _drawn(dtype: torch.dtype, device: str, *shape: int) -> tuple[torch.Tensor, ...]:
    """Return x and a residual, both strided, weight and bias."""
    x = draw(*shape, 2, dtype=dtype, device=device)[..., 0]
    residual = draw(*shape[:-1], shape[-1] + 3, dtype=dtype, device=device)[..., 3:]
    weight = draw(shape[-1], dtype=dtype, device=device)
    return x, residual, weight, weight.flip(0)


def _expect_sum(total: torch.Tensor, x: torch.Tensor, residual: torch.Tensor) -> None:
    exact = x.double() + residual.double()
    assert (total.dtype, total.shape) == (x.dtype, x.shape)
    assert ((total.double() - exact).abs() <= exact.abs() * EPSILON[x.dtype] * 1.01).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 70), (2, 3, 7), (1, 1), (5,)], ids=str)
def test_the_sum_and_its_norm(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x, residual, weight, bias = _drawn(dtype, device, *shape)
    for (y, total), exact in (
        (add_rms_norm(x, residual, weight, EXACT), lambda s: _exact(s, weight, None, centered=False)),
        (add_layer_norm(x, residual, weight, bias, EXACT), lambda s: _exact(s, weight, bias, centered=True)),
        (add_layer_norm(x, residual, weight, None, EXACT), lambda s: _exact(s, weight, None, centered=True)),
    ):
        _expect_sum(total, x, residual)
        expected = exact(total)
        limit = expected.abs() * EPSILON[dtype] * 1.01 + INNER * expected.abs().amax(-1, keepdim=True)
        assert (y.dtype, y.shape) == (dtype, x.shape)
        assert ((y.double() - expected).abs() <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_norms_are_quantized_in_float(with_residual: bool, dtype: torch.dtype, device: str) -> None:
    x, residual, weight, bias = _drawn(dtype, device, 4, 70)
    other = residual if with_residual else None
    for (q, scale, total), exact in (
        (rms_norm_quantize(x, other, weight, None, EXACT), lambda s: _exact(s, weight, None, centered=False)),
        (layer_norm_quantize(x, other, weight, bias, None, EXACT), lambda s: _exact(s, weight, bias, centered=True)),
        (layer_norm_quantize(x, other, weight, None, None, EXACT), lambda s: _exact(s, weight, None, centered=True)),
    ):
        if with_residual:
            _expect_sum(total, x, residual)
        assert with_residual == bool(total.numel())
        expect_nearest((q, scale), exact(total if with_residual else x), INNER)


def test_outliers_count_as_nothing(device: str) -> None:
    x, residual, weight, bias = _drawn(torch.float32, device, 3, 40)
    inliers = torch.ones(40, dtype=torch.bool, device=device)
    inliers[5] = False
    weight[5] = 1000.0
    q, scale, total = rms_norm_quantize(x, residual, weight, inliers, EXACT)
    expect_nearest((q, scale), _exact(total, weight, None, centered=False) * inliers, INNER)
    q, scale, total = layer_norm_quantize(x, residual, weight, bias, inliers, EXACT)
    expect_nearest((q, scale), _exact(total, weight, bias, centered=True) * inliers, INNER)


def _calls(device: str) -> dict[str, tuple[Any, Callable[[torch.Tensor], tuple[Any, ...]]]]:
    """Name -> operator, and what it is given for an x that is its residual too."""
    weight, bias = draw(9, device=device), draw(9, device=device).flip(0)
    return {
        "rms": (add_rms_norm, lambda x: (x, x.flip(0), weight, EXACT)),
        "layer": (add_layer_norm, lambda x: (x, x.flip(0), weight, bias, EXACT)),
        "rms quantized": (rms_norm_quantize, lambda x: (x, x.flip(0), weight, None, EXACT)),
        "rms quantized alone": (rms_norm_quantize, lambda x: (x, None, weight, None, EXACT)),
        "layer quantized": (layer_norm_quantize, lambda x: (x, x.flip(0), weight, bias, None, EXACT)),
    }


NAMES = ("rms", "layer", "rms quantized", "rms quantized alone", "layer quantized")


@pytest.mark.parametrize("name", NAMES)
def test_torch_accepts_the_operator(name: str, device: str) -> None:
    operator, arguments = _calls(device)[name]
    differentiable = operator in (add_rms_norm, add_layer_norm)
    torch.library.opcheck(operator, arguments(draw(2, 9, device=device).requires_grad_(differentiable)))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_nothing(name: str, device: str) -> None:
    operator, arguments = _calls(device)[name]
    made = operator(*arguments(torch.empty(0, 3, 9, device=device)))
    assert {tuple(each.shape) for each in made} <= {(0, 3, 9), (0, 3), (0,)}
    assert made[0].shape == (0, 3, 9)


@pytest.mark.parametrize("centered", [False, True])
def test_the_gradient_is_that_of_the_sum_and_of_its_norm(centered: bool, device: str) -> None:
    x, residual = draw(3, 20, device=device).requires_grad_(), draw(20, 3, device=device).T.requires_grad_()
    dy, dsum = draw(3, 5, 4, device=device).reshape(3, 20), draw(4, 15, device=device).reshape(3, 20)
    weight, bias = draw(20, device=device), draw(20, device=device).flip(0)
    given = (bias,) if centered else ()
    y, total = (add_layer_norm if centered else add_rms_norm)(x, residual, weight, *given, EXACT)
    torch.autograd.backward([y, total], [dy, dsum])
    s = (x.detach().double() + residual.detach().double()).requires_grad_()
    exact = _exact(s, weight, bias if centered else None, centered=centered)
    torch.autograd.backward([exact, s], [dy.double(), dsum.double()])
    assert s.grad is not None
    for each in (x, residual):
        assert each.grad is not None
        torch.testing.assert_close(each.grad.double(), s.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "arguments", "says"),
    [
        (rms_norm_quantize, (torch.zeros(3), None, torch.ones(4), None, 1e-5), "weight: shape"),
        (layer_norm_quantize, (torch.zeros(3), None, torch.ones(3), torch.ones(4), None, 1e-5), "bias: shape"),
        (layer_norm_quantize, (torch.zeros(3), torch.ones(1), torch.ones(3), None, None, 1e-5), "other: shape"),
        (add_rms_norm, (torch.zeros(3), torch.ones(3).half(), torch.ones(3), 1e-5), "other: dtype"),
        (add_rms_norm, (torch.zeros(3).double(), torch.ones(3).double(), torch.ones(3), 1e-5), "x: dtype"),
        (add_layer_norm, (torch.zeros(2, 3), torch.ones(3, 2).T, torch.ones(6)[::2], None, 1e-5), "weight: strides"),
    ],
)
def test_what_does_not_fit_is_refused(operator: Any, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        operator(*arguments)
