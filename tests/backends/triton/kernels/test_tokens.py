from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompile.backends.triton.kernels.fp8 import fp8_quantize_tokens
from qcompile.backends.triton.kernels.tokens import (
    quantize_static,
    quantize_tokens,
)
from qcompile.errors import InputError
from tests.backends.triton.kernels.grouped_cases import DTYPES, EPSILON, draw
from tests.backends.triton.kernels.quantized_rows import expect_nearest

SINGLE = EPSILON[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 33), (2, 3, 7), (1, 1), (5,)], ids=str)
def test_integers_are_the_nearest(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = draw(*shape, dtype=dtype, device=device)
    expect_nearest(quantize_tokens(x, None), x.double())


def test_outliers_count_as_nothing(device: str) -> None:
    x = draw(3, 40, device=device)
    x[:, 5] = 1000.0
    inliers = torch.ones(40, dtype=torch.bool, device=device)
    inliers[5] = False
    expect_nearest(quantize_tokens(x, inliers), (x * inliers).double())


def test_strided_rows_rows_of_zeros_and_none(device: str) -> None:
    x = draw(40, 3, device=device).T
    expect_nearest(quantize_tokens(x, None), x.double())
    expect_nearest(quantize_tokens(torch.zeros(2, 5, device=device), None), torch.zeros(2, 5, device=device).double())
    q, scale = quantize_tokens(torch.empty(0, 5, device=device), None)
    assert (q.shape, scale.shape) == ((0, 5), (0,))
    q, scale = quantize_tokens(torch.empty(2, 0, device=device), None)
    assert (tuple(q.shape), scale.tolist()) == ((2, 0), [1, 1])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_has_the_scale_nan(broken: float, device: str) -> None:
    x = draw(2, 5, device=device)
    x[1, 2] = broken
    q, scale = quantize_tokens(x, None)
    assert scale.isnan().tolist() == [False, True]
    assert not q[1].any()


def test_static_integers_saturate(device: str) -> None:
    x = torch.tensor([[-1e30, -64.3, -1.25, 0.25, 0.75], [63.4, 63.6, 1e9, torch.nan, 0.0]], device=device)
    q = quantize_static(x.T, torch.tensor(0.5, device=device))
    assert q.T.tolist() == [[-128, -128, -2, 0, 2], [127, 127, 127, 0, 0]]
    assert quantize_static(x[:0], torch.tensor(0.5, device=device)).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eight_bit_floats_are_those_of_torch(dtype: torch.dtype, device: str) -> None:
    x = draw(3, 33, dtype=dtype, device=device)
    q, scale = fp8_quantize_tokens(x)
    torch.testing.assert_close(scale, x.float().abs().amax(-1) / 448, rtol=2 * SINGLE, atol=0)
    assert torch.equal(q.float(), (x.float() * (1 / scale)[:, None]).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (quantize_tokens, (torch.ones(9, dtype=torch.bool),)),
        (quantize_static, (torch.tensor(0.1),)),
    ],
)
def test_torch_accepts_the_operator(operator: Any, arguments: tuple[Any, ...], device: str) -> None:
    given = (each.to(device) if isinstance(each, torch.Tensor) else each for each in arguments)
    torch.library.opcheck(operator, (draw(2, 9, device=device), *given))


@pytest.mark.parametrize(
    ("operator", "arguments", "says"),
    [
        (quantize_tokens, (torch.zeros(3, dtype=torch.int32), None), "int32"),
        (quantize_tokens, (torch.zeros(3), torch.ones(3)), "inliers: dtype"),
        (quantize_static, (torch.zeros(3), torch.ones(1)), "scale: shape"),
    ],
)
def test_what_does_not_fit_is_refused(operator: Any, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        operator(*arguments)
