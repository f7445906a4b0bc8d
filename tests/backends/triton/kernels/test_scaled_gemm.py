from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompile.backends.triton.kernels import scaled_gemm
from qcompile.backends.triton.kernels.fp8 import expect_float8, fp8_linear, fp8_quantize_tokens
from qcompile.backends.triton.kernels.int8_gemm import int8_gemm, int8_linear, int8_linear_static
from qcompile.backends.triton.kernels.llm_int8 import llm_int8_gemm, llm_int8_linear
from qcompile.backends.triton.kernels.tokens import quantize_static, quantize_tokens
from qcompile.errors import InputError, UnsupportedError
from tests.backends.triton.kernels.grouped_cases import DTYPES, close, draw

ACTIVATIONS = {
    "none": lambda z: z,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
}
E4M3 = torch.float8_e4m3fn


def _weight(outputs: int, inputs: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return int8 [N, K], its scale, and a bias."""
    source = torch.Generator().manual_seed(outputs + inputs)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=source, dtype=torch.int8)
    scale = (torch.rand(outputs, generator=source) + 0.5) / 64
    return weight.to(device), scale.to(device), draw(outputs, device=device)


def _outliers(inputs: int, outputs: int, count: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Return inliers, the columns of outliers, and their weight."""
    columns = torch.arange(count) * (inputs // max(count, 1))
    inliers = torch.ones(inputs, dtype=torch.bool)
    inliers[columns] = False
    return inliers.to(device), columns.to(torch.int32).to(device), draw(outputs, count, dtype=dtype, device=device)


def _values(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return q.double() * scale.double()[..., None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "inputs", "outputs"), [(5, 200, 37), (17, 128, 65), (1, 1, 1), (66, 33, 3)])
def test_integer_products_are_those_of_float64(
    count: int, inputs: int, outputs: int, dtype: torch.dtype, device: str
) -> None:
    q, scale = quantize_tokens(draw(count, inputs, device=device), None)
    weight, weight_scale, bias = _weight(outputs, inputs, device)
    y = int8_gemm(q, scale, weight, weight_scale, bias, "none", dtype)
    assert y.dtype == dtype
    # The sums are exact, and multiplied by two scales.
    close(y, _values(q, scale), _values(weight, weight_scale).T, bias)


@pytest.mark.parametrize("activation", scaled_gemm.ACTIVATIONS)
def test_bias_and_activation_are_fused(activation: str, device: str) -> None:
    q, scale = quantize_tokens(draw(3, 40, device=device), None)
    weight, weight_scale, bias = _weight(9, 40, device)
    y = int8_gemm(q, scale, weight, weight_scale, bias, activation, torch.float32)
    z = _values(q, scale) @ _values(weight, weight_scale).T + bias.double()
    torch.testing.assert_close(y.double(), ACTIVATIONS[activation](z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [*scaled_gemm.FEW, *scaled_gemm.SOME, *scaled_gemm.MANY], ids=lambda tile: tile.name)
def test_every_tile_computes_the_same(tile: scaled_gemm.Tile, device: str) -> None:
    q, scale = quantize_tokens(draw(130, 150, device=device), None)
    weight, weight_scale, bias = _weight(70, 150, device)
    scaled = scaled_gemm.Scaled(q, scale, weight, weight_scale, bias)
    y = scaled_gemm.launch(scaled, None, "none", torch.empty(130, 70, device=device), tile)
    close(y, _values(q, scale), _values(weight, weight_scale).T, bias)


def test_one_scale_for_all_tokens_and_more_axes(device: str) -> None:
    x, scale = draw(2, 3, 80, device=device)[..., ::2], torch.tensor(0.03, device=device)
    weight, weight_scale, bias = _weight(9, 40, device)
    q = quantize_static(x, scale)
    found = int8_linear_static(x, scale, weight, weight_scale, bias, "none")
    close(found, q.double() * scale.double(), _values(weight, weight_scale).T, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 35])
def test_outliers_are_multiplied_in_float(count: int, dtype: torch.dtype, device: str) -> None:
    x = draw(3, 70, 2, dtype=dtype, device=device)[..., 0]
    weight, weight_scale, bias = _weight(9, 70, device)
    inliers, columns, outlier_weight = _outliers(70, 9, count, dtype, device)
    weight = weight * inliers
    x = torch.where(inliers, x, x * 50)
    q, scale = quantize_tokens(x, inliers)
    both = torch.cat([_values(q, scale), x[:, columns.long()].double()], dim=1)
    weights = torch.cat([_values(weight, weight_scale), outlier_weight.double()], dim=1).T
    close(llm_int8_linear(x, weight, weight_scale, inliers, columns, outlier_weight, bias), both, weights, bias)
    close(llm_int8_gemm(q, scale, weight, weight_scale, x, columns, outlier_weight, None), both, weights, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_eight_bit_floats(dtype: torch.dtype, device: str) -> None:
    x, weight = draw(5, 70, dtype=dtype, device=device), draw(9, 70, device=device).to(E4M3)
    weight_scale, bias = _weight(9, 70, device)[1:]
    q, scale = fp8_quantize_tokens(x)
    close(fp8_linear(x, weight, weight_scale, bias), _values(q, scale), _values(weight, weight_scale).T, bias)


def _linears(device: str) -> dict[str, tuple[Any, tuple[Any, ...], torch.Tensor]]:
    """Name -> operator, its arguments behind x, and the weight [N, K] that its gradient is by."""
    weight, weight_scale, bias = _weight(6, 40, device)
    wide = _values(weight, weight_scale)
    inliers, columns, outlier_weight = _outliers(40, 6, 2, torch.float32, device)
    of_both = (wide * inliers).index_add(1, columns, outlier_weight.double())
    floats = draw(6, 40, device=device).to(E4M3)
    scale = torch.tensor(0.02, device=device)
    return {
        "int8": (int8_linear, (weight, weight_scale, bias, "none"), wide),
        "static": (int8_linear_static, (scale, weight, weight_scale, bias, "none"), wide),
        "llm_int8": (llm_int8_linear, (weight, weight_scale, inliers, columns, outlier_weight, bias), of_both),
        "fp8": (fp8_linear, (floats, weight_scale, bias), _values(floats, weight_scale)),
    }


@pytest.mark.parametrize("name", ["int8", "static", "llm_int8", "fp8"])
def test_the_gradient_passes_the_rounding(name: str, device: str) -> None:
    operator, arguments, weight = _linears(device)[name]
    x, dy = draw(3, 40, device=device).requires_grad_(), draw(3, 6, device=device)
    operator(x, *arguments).backward(dy)
    assert x.grad is not None
    kept = (x.detach().abs() / 0.02 <= 127.5) if name == "static" else torch.ones_like(x, dtype=torch.bool)
    assert kept.all() == (name != "static")
    assert not x.grad[~kept].any()
    close(torch.where(kept, x.grad, (dy.double() @ weight).float()), dy, weight, None, 2.0**-23)


@pytest.mark.parametrize("name", ["int8", "static"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
def test_the_gradient_is_that_of_the_activation_too(name: str, activation: str, device: str) -> None:
    operator, (*arguments, _), weight = _linears(device)[name]
    x, dy = draw(2, 40, device=device).clamp(-2, 2).requires_grad_(), draw(2, 6, device=device)
    z = operator(x, *arguments, "none").detach().double().requires_grad_()
    ACTIVATIONS[activation](z).backward(dy.double())
    operator(x, *arguments, activation).backward(dy)
    assert x.grad is not None
    assert z.grad is not None
    torch.testing.assert_close(x.grad.double(), z.grad @ weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["int8", "static", "llm_int8", "fp8"])
def test_torch_accepts_the_operator(name: str, device: str) -> None:
    operator, arguments, _ = _linears(device)[name]
    checks = ["test_autograd_registration", "test_faketensor"]
    # That of the schema compares before and after, which torch cannot for 8-bit floats.
    checks += [] if name == "fp8" else ["test_schema", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(operator, (draw(2, 40, device=device).requires_grad_(), *arguments), test_utils=checks)


@pytest.mark.parametrize("name", ["int8", "static", "llm_int8", "fp8"])
def test_no_rows_give_nothing(name: str, device: str) -> None:
    operator, arguments, _ = _linears(device)[name]
    assert operator(torch.empty(2, 0, 40, device=device), *arguments).shape == (2, 0, 6)


def test_a_token_that_is_not_finite_stays_alone(device: str) -> None:
    operator, arguments, _ = _linears(device)["int8"]
    x = draw(3, 40, device=device)
    x[1, 3] = torch.nan
    assert operator(x, *arguments).isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("place", "given", "says"),
    [
        (0, torch.zeros(3, 40), "x: dtype torch.float32"),
        (1, torch.zeros(2), "scale: shape"),
        (2, torch.zeros(6, 39, dtype=torch.int8), "weight: shape"),
        (2, torch.zeros(6, 40), "weight: dtype"),
        (2, torch.zeros(6, dtype=torch.int8), "weight of \\(6,\\)"),
        (2, torch.zeros(40, 6, dtype=torch.int8).T, "weight: strides"),
        (3, torch.zeros(5), "weight_scale: shape"),
        (4, torch.zeros(5), "bias: shape"),
        (5, "tanh", "'tanh'"),
        (6, torch.int8, "int8"),
    ],
)
def test_what_does_not_fit_is_refused(place: int, given: Any, says: str) -> None:
    weight, weight_scale, bias = _weight(6, 40, "cpu")
    q = torch.zeros(3, 40, dtype=torch.int8)
    arguments: list[Any] = [q, torch.ones(3), weight, weight_scale, bias, "none", torch.float32]
    arguments[place] = given
    with pytest.raises(InputError, match=says):
        int8_gemm(*arguments)


@pytest.mark.parametrize(
    ("place", "given", "says"),
    [
        (4, torch.zeros(3, 39), "x: shape"),
        (5, torch.zeros(2), "outliers: dtype"),
        (6, torch.zeros(6, 3), "outlier_weight: shape"),
        (6, torch.zeros(6, 2).half(), "outlier_weight: dtype"),
    ],
)
def test_outliers_that_do_not_fit_are_refused(place: int, given: torch.Tensor, says: str) -> None:
    weight, weight_scale, bias = _weight(6, 40, "cpu")
    _, columns, outlier_weight = _outliers(40, 6, 2, torch.float32, "cpu")
    q, x = torch.zeros(3, 40, dtype=torch.int8), torch.zeros(3, 40)
    arguments = [q, torch.ones(3), weight, weight_scale, x, columns, outlier_weight, bias]
    arguments[place] = given
    with pytest.raises(InputError, match=says):
        llm_int8_gemm(*arguments)


def test_a_product_of_no_inputs_is_refused() -> None:
    nothing = torch.zeros(3, 0, dtype=torch.int8)
    with pytest.raises(InputError, match="no inputs"):
        int8_gemm(nothing, torch.ones(3), nothing, torch.ones(3), None, "none", torch.float32)


def test_cards_without_eight_bit_floats_are_refused() -> None:
    expect_float8((8, 9))
    expect_float8((9, 0))
    with pytest.raises(UnsupportedError, match=r"compute capability 8\.6"):
        expect_float8((8, 6))
