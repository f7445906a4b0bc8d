from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from qcompile.backends.triton.kernels import group_gemm, group_gemv
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.grouped import grouped_dequantize, grouped_gemm, grouped_gemv
from qcompile.errors import InputError
from tests.backends.triton.kernels.grouped_cases import DTYPES, EPSILON, Grouped, close, draw, grouped

# Inputs, outputs, group size and rows: planes of 16 and 32, groups of whole planes, of parts of them and with a short
# last one, one group, one input, one output.
SHAPES = [(33, 17, 32, 1), (288, 33, 64, 3), (17, 1, 5, 2), (600, 5, 1000, 1), (1, 2, 1, 1)]


@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_float64(
    shape: tuple[int, int, int, int], bits: int, asymmetric: bool, device: str
) -> None:
    inputs, outputs, group_size, count = shape
    dtype = DTYPES[(inputs + bits + asymmetric) % 3]
    weight = grouped(inputs, outputs, bits, group_size, asymmetric, dtype, device)
    x = draw(count, inputs, dtype=dtype, device=device)
    close(grouped_gemv(x, *weight.arguments), x, weight.weight, weight.bias)
    close(grouped_gemm(x, *weight.arguments), x, weight.weight, weight.bias, EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weight_comes_back_rounded_once(dtype: torch.dtype, device: str) -> None:
    weight = grouped(45, 7, 3, 16, asymmetric=True, device=device)
    words, scale, zero_point, _, *numbers = weight.arguments
    found = grouped_dequantize(words, scale, zero_point, *numbers, 45, dtype)
    assert torch.equal(found, weight.weight.float().to(dtype))


def test_strides_and_leading_axes_of_x(device: str) -> None:
    dtype = torch.bfloat16
    weight = grouped(40, 9, 4, 8, dtype=dtype, device=device)
    for x in (
        draw(40, 3, dtype=dtype, device=device).T,
        draw(2, 3, 80, dtype=dtype, device=device)[:, 1:, ::2],
        draw(40, dtype=dtype, device=device),
        draw(1, 40, dtype=dtype, device=device).expand(4, 40),
    ):
        close(grouped_gemv(x, *weight.arguments), x, weight.weight, weight.bias)
        close(grouped_gemm(x, *weight.arguments), x, weight.weight, weight.bias, EPSILON[dtype])


@pytest.mark.parametrize("operator", [grouped_gemv, grouped_gemm])
@pytest.mark.parametrize("shape", [(0, 40), (2, 0, 40)])
def test_no_rows_and_no_outputs_give_nothing(operator: Any, shape: tuple[int, ...], device: str) -> None:
    weight = grouped(40, 9, device=device)
    assert operator(torch.empty(shape, device=device), *weight.arguments).shape == (*shape[:-1], 9)
    none = grouped(40, 0, device=device)
    assert operator(torch.empty(3, 40, device=device), *none.arguments).shape == (3, 0)


@pytest.mark.parametrize("tile", group_gemv.TILES, ids=lambda tile: tile.name)
def test_every_tile_of_gemv_computes_the_same(tile: group_gemv.Tile, device: str) -> None:
    weight, x = grouped(520, 37, 4, 64, asymmetric=True, device=device), draw(1, 520, device=device)
    close(group_gemv.launch(x, _weight(weight, 520), weight.bias, tile), x, weight.weight, weight.bias)


@pytest.mark.parametrize("tile", [*group_gemm.FEW, *group_gemm.SOME, *group_gemm.MANY], ids=lambda tile: tile.name)
def test_every_tile_of_gemm_computes_the_same(tile: group_gemm.Tile, device: str) -> None:
    weight, x = grouped(264, 37, 4, 64, asymmetric=True, device=device), draw(19, 264, device=device)
    y = group_gemm.launch(x, _weight(weight, 264), weight.bias, tile)
    close(y, x, weight.weight, weight.bias, EPSILON[x.dtype])


def test_split_sums_have_the_same_bits_in_every_run(device: str) -> None:
    weight, x = grouped(520, 5, 4, 64, device=device), draw(2, 520, dtype=torch.float16, device=device)
    tile = group_gemv.TILES[-1]
    first, second = (group_gemv.launch(x, _weight(weight, 520), weight.bias, tile) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("operator", [grouped_gemv, grouped_gemm])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_x_is_that_of_the_dequantized_weight(operator: Any, dtype: torch.dtype, device: str) -> None:
    weight = grouped(33, 6, 4, 16, asymmetric=True, dtype=dtype, device=device)
    x = draw(2, 33, dtype=dtype, device=device).requires_grad_()
    dy = draw(2, 6, dtype=dtype, device=device)
    operator(x, *weight.arguments).backward(dy)
    assert x.grad is not None
    close(x.grad, dy, weight.weight.T, None, EPSILON[dtype])


@pytest.mark.parametrize("operator", [grouped_gemv, grouped_gemm])
def test_torch_accepts_the_operator(operator: Any, device: str) -> None:
    weight = grouped(33, 6, 4, 16, device=device)
    x = draw(2, 33, device=device).requires_grad_()
    torch.library.opcheck(operator, (x, *weight.arguments))


def test_a_number_that_is_not_finite_stays_in_its_row(device: str) -> None:
    weight, x = grouped(40, 5, device=device), draw(3, 40, device=device)
    x[1, 7] = torch.nan
    for operator in (grouped_gemv, grouped_gemm):
        y = operator(x, *weight.arguments)
        assert y[1].isnan().all()
        assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 5}, "5 bits"),
        ({"group_size": 0}, "groups of 0"),
        ({"plane": 8}, "plane of 8"),
        ({"words": torch.zeros(3, 9, dtype=torch.int32)}, "words: shape \\(3, 9\\)"),
        ({"words": torch.zeros(16, 9)}, "words: dtype torch.float32"),
        ({"words": torch.zeros(16, 18, dtype=torch.int32)[:, ::2]}, "words: strides"),
        ({"scale": torch.zeros(3, 9)}, "scale: shape \\(3, 9\\)"),
        ({"zero_point": torch.zeros(2, 9)}, "zero_point: dtype"),
        ({"zero_point": torch.zeros(1, 9, dtype=torch.uint8)}, "zero_point: shape"),
        ({"bias": torch.zeros(8)}, "bias: shape"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    weight = dataclasses.replace(grouped(40, 9), **change)
    with pytest.raises(InputError, match=says):
        grouped_gemv(torch.zeros(1, 40), *weight.arguments)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(1, 40, dtype=torch.float64), "dtype torch.float64"),
        (torch.tensor(1.0), "scalar"),
        (torch.zeros(1, 0), " 0 inputs"),
        (torch.zeros(1, 200), "words: shape"),
        (torch.zeros(1, 40, device="meta"), "it is on meta"),
    ],
)
def test_an_activation_that_does_not_fit_is_refused(x: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        grouped_gemm(x, *grouped(40, 9).arguments)


def test_a_weight_in_another_dtype_is_refused() -> None:
    words, scale, zero_point, _, *numbers = grouped(40, 9).arguments
    with pytest.raises(InputError, match="float64"):
        grouped_dequantize(words, scale, zero_point, *numbers, 40, torch.float64)


def _weight(weight: Grouped, inputs: int) -> GroupWeight:
    numbers = (weight.bits, weight.group_size, weight.plane, inputs)
    return GroupWeight(weight.words, weight.scale, *numbers, weight.zero_point)
