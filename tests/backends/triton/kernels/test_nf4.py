from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.backends.triton.kernels.nf4 import nf4_dequantize, nf4_gemm, nf4_gemv
from qcompile.backends.triton.kernels.packing import pack
from qcompile.errors import InputError
from qcompile.solvers.nf4 import NF4, double_quantized, dynamic_levels, nf4
from tests.backends.triton.kernels.grouped_cases import DTYPES, EPSILON, close, draw


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments of the operators, of one scale and of double quantization, and the weights that they stand for."""

    single: tuple[Any, ...]
    double: tuple[Any, ...]
    weight: torch.Tensor
    double_weight: torch.Tensor


def _case(inputs: int, outputs: int, group_size: int, device: str) -> Case:
    weight = np.random.default_rng(inputs).standard_normal((inputs, outputs)).astype(np.float32)
    found = nf4(weight, group_size)
    scales = double_quantized(np.ascontiguousarray(found.scale.T))
    packed = pack(torch.from_numpy(found.indices), 4)
    values = torch.from_numpy(NF4[found.indices]).double()
    groups = torch.arange(inputs) // group_size
    of_groups = torch.from_numpy(scales.values().reshape(outputs, -1).T.copy()).double()
    head, tail = (packed.words.to(device), torch.from_numpy(NF4).to(device)), (draw(outputs).to(device), group_size)
    eight_bits = (
        torch.from_numpy(scales.scale).to(device),
        torch.from_numpy(scales.indices.reshape(outputs, -1).T.copy()).to(device),
        torch.from_numpy(dynamic_levels()).to(device),
        torch.tensor(float(scales.offset), device=device),
    )
    return Case(
        (*head, torch.from_numpy(found.scale).to(device), None, None, None, *tail, packed.plane),
        (*head, *eight_bits, *tail, packed.plane),
        torch.from_numpy(found.weight(group_size)).double().to(device),
        (values * of_groups[groups]).to(device),
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "group_size", "dtype"),
    zip((288, 33, 17), (33, 40, 1), (64, 5, 100), DTYPES, strict=True),
)
def test_products_are_those_of_float64(
    inputs: int, outputs: int, group_size: int, dtype: torch.dtype, device: str
) -> None:
    case, x = _case(inputs, outputs, group_size, device), draw(2, inputs, dtype=dtype, device=device)
    # A level by a scale, and in 8 bits a level by a scale plus an offset, are rounded to float32.
    close(nf4_gemv(x, *case.single), x, case.weight, case.single[6], 2.0**-24)
    close(nf4_gemm(x, *case.single), x, case.weight, case.single[6], 2.0**-23 + EPSILON[dtype])
    close(nf4_gemv(x, *case.double), x, case.double_weight, case.double[6], 2.0**-22)
    close(nf4_gemm(x, *case.double), x, case.double_weight, case.double[6], 2.0**-22 + EPSILON[dtype])


@pytest.mark.parametrize("operator", [nf4_gemv, nf4_gemm])
@pytest.mark.parametrize("double", [False, True])
def test_the_gradient_of_x_and_what_torch_asks_of_an_operator(operator: Any, double: bool, device: str) -> None:
    case = _case(33, 6, 16, device)
    arguments, weight = (case.double, case.double_weight) if double else (case.single, case.weight)
    x, dy = draw(3, 33, device=device).requires_grad_(), draw(3, 6, device=device)
    operator(x, *arguments).backward(dy)
    assert x.grad is not None
    close(x.grad, dy, weight.T, None, 2.0**-22)
    torch.library.opcheck(operator, (x, *arguments), test_utils=("test_schema", "test_faketensor"))


def test_weights_come_back(device: str) -> None:
    case = _case(33, 6, 16, device)
    *weight, _, group_size, plane = case.single
    found = nf4_dequantize(*weight, group_size, plane, 33, torch.float32)
    assert torch.equal(found, case.weight.float())
    *weight, _, group_size, plane = case.double
    found = nf4_dequantize(*weight, group_size, plane, 33, torch.float32)
    torch.testing.assert_close(found, case.double_weight.float(), rtol=2.0**-21, atol=2.0**-21)


def test_no_rows_give_nothing(device: str) -> None:
    case = _case(33, 6, 16, device)
    assert nf4_gemv(torch.empty(0, 33, device=device), *case.single).shape == (0, 6)
    assert nf4_gemm(torch.empty(2, 0, 33, device=device), *case.double).shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("place", "given", "says"),
    [
        (1, torch.zeros(15), "codebook: shape"),
        (2, torch.zeros(2), "scale: shape"),
        (3, torch.zeros(3, 6), "indices: dtype"),
        (4, torch.zeros(255), "levels: shape"),
        (5, torch.zeros(1), "offset: shape"),
        (6, torch.zeros(5), "bias: shape"),
    ],
)
def test_what_does_not_fit_is_refused(place: int, given: torch.Tensor, says: str) -> None:
    arguments = list(_case(33, 6, 16, "cpu").double)
    arguments[place] = given
    with pytest.raises(InputError, match=says):
        nf4_gemv(torch.zeros(1, 33), *arguments)
