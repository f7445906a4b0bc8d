"""Linears with weights in blocks that read one value become one, with the same numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.backends.openvino.joined_linears import join_linears
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

INPUTS = 64
FEED = {"x": np.random.default_rng(3).standard_normal((2, 5, INPUTS)).astype(np.float32)}


def weight(outputs: int, group: int, dtype: Any = ml_dtypes.int4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(outputs)
    low, high = (-8, 8) if dtype is ml_dtypes.int4 else (-128, 128)
    scale = rng.uniform(0.5, 2, (INPUTS // group, outputs)).astype(np.float32)
    return rng.integers(low, high, (INPUTS, outputs)).astype(dtype), scale, np.zeros(scale.shape, dtype)


def pair(second: str = "MatMul (x, b)", group: int = 32, widths: tuple[int, int] = (8, 24), **kinds: Any) -> ir.Model:
    """Two linears, of x unless it is said otherwise; their outputs go through Relu."""
    named = dict(zip(("qa", "sa", "za"), weight(widths[0], 32), strict=True))
    named |= dict(zip(("qb", "sb", "zb"), weight(widths[1], group, **kinds), strict=True))
    model = parse(
        f"(float[N,S,{INPUTS}] x) => (float[N,S,{widths[0]}] ya, float[N,S,{widths[1]}] yb) {{"
        " a = DequantizeLinear <axis = 0, block_size = 32> (qa, sa, za)"
        f" b = DequantizeLinear <axis = 0, block_size = {group}> (qb, sb, zb)"
        f" fa = MatMul (x, a) ya = Relu (fa) fb = {second} yb = Relu (fb) }}",
        **named,
    )
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def products(model: ir.Model) -> int:
    return sum(node.op_type == "MatMul" for node in model.graph)


def joined(model: ir.Model) -> ir.Model:
    """Join, and check that the model is valid, computes the same and has nothing left to join."""
    expected = evaluate(model, FEED)
    join_linears(model)
    common.CheckerPass(full_check=True)(model)
    for name, array in evaluate(model, FEED).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-4)
    return model


def test_two_linears_become_one() -> None:
    model = joined(pair())
    assert products(model) == 1
    integers = next(node for node in model.graph if node.op_type == "DequantizeLinear").inputs[0]
    assert integers is not None
    assert integers.const_value is not None
    assert (integers.dtype, list(integers.const_value.shape)) == (ir.DataType.INT4, [INPUTS, 32])
    assert all(value.uses() for value in model.graph.initializers.values())


def test_biases_are_joined_too() -> None:
    model = pair()
    for product in [node for node in model.graph if node.op_type == "MatMul"]:
        width = product.outputs[0].shape[-1]
        bias = ir.Value(
            name=f"bias{width}",
            shape=ir.Shape([width]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(np.arange(width, dtype=np.float32)),
        )
        model.graph.register_initializer(bias)
        add = ir.node("Add", [product.outputs[0], bias])
        add.outputs[0].type, add.outputs[0].shape = product.outputs[0].type, product.outputs[0].shape
        product.outputs[0].replace_all_uses_with(add.outputs[0])
        add.replace_input_with(0, product.outputs[0])
        model.graph.insert_after(product, add)
    model = joined(model)
    assert products(model) == sum(node.op_type == "Add" for node in model.graph) == 1


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: pair(group=16), id="other groups"),
        pytest.param(lambda: pair(dtype=np.int8), id="other type"),
        pytest.param(lambda: pair(widths=(8, 4096)), id="too wide"),
        pytest.param(lambda: pair("MatMul (ya, b)", widths=(64, 8)), id="other input"),
    ],
)
def test_unlike_linears_stay_apart(model: Any) -> None:
    assert products(joined(model())) == 2


def test_output_of_the_model_stays() -> None:
    model = pair()
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "MatMul").outputs[0])
    assert products(joined(model)) == 2


def with_minimums(
    sums: tuple[str, str] = ("sums", "sums"), total: str = "ReduceSum <keepdims = 0> (blocks, last)"
) -> ir.Model:
    """Two linears of x whose weights have a minimum in each block, and which have a bias."""
    rng = np.random.default_rng(7)
    named = dict(zip(("qa", "sa", "za", "qb", "sb", "zb"), (*weight(8, 32), *weight(24, 32)), strict=True))
    for name, width in (("a", 8), ("b", 24)):
        named |= {f"minimum_{name}": rng.standard_normal((2, width)).astype(np.float32)}
        named |= {f"bias_{name}": rng.standard_normal(width).astype(np.float32)}
    model = parse(
        f"(float[N,S,{INPUTS}] x) => (float[N,S,8] ya, float[N,S,24] yb) {{"
        " a = DequantizeLinear <axis = 0, block_size = 32> (qa, sa, za) pa = MatMul (x, a)"
        " b = DequantizeLinear <axis = 0, block_size = 32> (qb, sb, zb) pb = MatMul (x, b)"
        f" blocks = Reshape (x, shape) sums = {total} again = {total}"
        f" ma = MatMul ({sums[0]}, minimum_a) ta = Add (pa, ma) fa = Add (ta, bias_a) ya = Relu (fa)"
        f" mb = MatMul ({sums[1]}, minimum_b) tb = Add (mb, pb) fb = Add (bias_b, tb) yb = Relu (fb) }}",
        shape=np.array([0, 0, 2, -1]),
        last=np.array([-1]),
        **named,
    )
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def test_minimums_of_blocks_are_joined_too() -> None:
    model = joined(with_minimums())
    assert [node.op_type for node in model.graph if node.op_type in ("MatMul", "Add", "Split")] == [
        *("MatMul", "MatMul", "Add", "Add", "Split")
    ]
    assert all(value.uses() for value in model.graph.initializers.values())


def test_minimums_of_unlike_sums_stay_apart() -> None:
    assert products(joined(with_minimums(("sums", "again")))) == 4


def test_what_else_is_added_stays_behind_the_joined_linear() -> None:
    model = joined(with_minimums(("sums", "again"), "ReduceMax <keepdims = 0> (blocks, last)"))
    assert products(model) == 3
