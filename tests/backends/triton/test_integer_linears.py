"""Quantized linears become products of integers, and those that no kernel multiplies stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("triton")

from qcompile.backends.triton.lowering import fused
from tests.backends.portable import (
    Case,
    dynamic_per_tensor,
    dynamic_per_token,
    linear_case,
    static_shared,
    two_layers,
)
from tests.backends.triton.rewritten import check_same, kernels, operators


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("per_tensor", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_static_activations(dtype: str, sym: bool, per_tensor: bool, bias: bool) -> None:
    case = linear_case(dtype, sym=sym, per_tensor=per_tensor, bias=bias)
    check_same(case.model, case.feed)
    assert operators(case.model) == {"QuantizeLinear": 1, "IntegerLinear": 1}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (static_shared(), {"QuantizeLinear": 1, "IntegerLinear": 1, "Split": 1}),
        (dynamic_per_tensor(), {"DynamicQuantizeLinear": 1, "IntegerLinear": 1, "Split": 1}),
        (dynamic_per_token(), {"QuantizeTokens": 1, "IntegerLinear": 1, "Split": 1}),
    ],
    ids=["static", "dynamic per tensor", "dynamic per token"],
)
def test_several_linears_of_one_value_are_one_product(case: Case, expected: dict[str, int]) -> None:
    check_same(case.model, case.feed)
    assert operators(case.model) == expected


def test_integers_flow_between_linears() -> None:
    case = two_layers("MatMul", "uint8", sym=False)
    check_same(case.model, case.feed)
    assert kernels(case.model) == {"IntegerLinear": 2}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_any_number_of_rows(rank: int) -> None:
    for case in (linear_case("uint8"), dynamic_per_token()):
        for value in (*case.model.graph.inputs, *case.model.graph.outputs):
            value.shape = None
        x = np.random.default_rng(1).normal(size=(*(2,) * (rank - 1), 32)).astype(np.float32)
        check_same(case.model, {"x": x})
        assert "IntegerLinear" in kernels(case.model)
        if rank > 1:
            check_same(case.model, {"x": x[:0]})


def test_a_weight_with_a_zero_point_stays() -> None:
    case = linear_case(weight_zero=3)
    check_same(case.model, case.feed)
    assert kernels(case.model) == {"GroupedLinear": 1}  # 8 bits of weight, by an activation that is dequantized


def test_several_scales_of_an_activation_stay() -> None:
    case = linear_case()
    initializers = case.model.graph.initializers
    for name, array in (("s", np.full(32, 0.03, np.float32)), ("z", np.full(32, 99, np.uint8))):
        initializers[name].const_value = ir.tensor(array, name=name)
        initializers[name].shape = ir.Shape([32])
    for node in case.model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and initializers["s"] in node.inputs:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    check_same(case.model, case.feed)
    assert "IntegerLinear" not in kernels(case.model)


def test_the_sums_that_a_zero_point_multiplies_are_those_of_the_weight() -> None:
    case = linear_case("uint8")
    (node,) = [node for node in fused(case.model).graph if node.op_type == "IntegerLinear"]
    weight, scale, sums = (value.const_value.numpy().astype(np.float64) for value in node.inputs[3:6])
    np.testing.assert_allclose(sums, weight.sum(axis=1) * scale, rtol=1e-6)
