"""Weights in blocks: multiplied as they are, or float from the moment when the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.backends import FORM
from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.blocks import block_weights, dequantize_blocks_when_loaded, multiply_in_blocks
from tests.backends.onnxruntime.rewrites import check, operators, optimized, refuses, rewritten
from tests.backends.portable import parse, reference

TYPES: dict[str, Any] = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int8": np.int8, "uint8": np.uint8}
LEAST = {"int4": -8, "uint4": 0, "int8": -128, "uint8": 0}
PRODUCT = "y = MatMul (x, d)"
ONCE = {"Cast": 1, "Reshape": 2, "Unsqueeze": 1, "Mul": 1, "MatMul": 1}
WITH_ZERO_POINTS = {**ONCE, "Cast": 2, "Unsqueeze": 2, "Sub": 1}


def blocks(
    size: int,
    axis: int = 0,
    kind: str = "int4",
    product: str = PRODUCT,
    zero_point: bool = True,
    form: str | None = None,
) -> ir.Model:
    """A weight of 64 inputs and 64 outputs with a scale for each block of an axis."""
    generator = np.random.default_rng(0)
    shape = [64, 64]
    shape[axis] //= size
    numbers = {"w": generator.integers(LEAST[kind], LEAST[kind] + 16, (64, 64)).astype(TYPES[kind])}
    numbers["s"] = generator.uniform(0.5, 2, shape).astype(np.float32)
    if zero_point:
        numbers["z"] = generator.integers(LEAST[kind], LEAST[kind] + 16, shape).astype(TYPES[kind])
    reads = "w, s, z" if zero_point else "w, s"
    text = f"d = DequantizeLinear <axis = {axis}, block_size = {size}> ({reads})"
    model = parse(f"(float[N,64] x) => (float[N,64] y) {{ {text} {product} }}", **numbers)
    if form is not None:
        model.graph[0].metadata_props[FORM] = form
    return model


def typed(model: ir.Model) -> ir.Model:
    """The model with shapes, as the compiler has them."""
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("size", "axis"), [(16, 0), (64, 0), (8, 1), (16, -1)])
def test_blocks_are_dequantized_by_operators_that_are_evaluated_once(kind: str, size: int, axis: int) -> None:
    model = blocks(size, axis, kind, form="float")
    model.graph[0].outputs[0].shape = ir.Shape([64, 64])
    after = check(model, feed(), WITH_ZERO_POINTS, dequantize_blocks_when_loaded)
    weight = next(node for node in after.graph if node.op_type == "MatMul").inputs[1]
    assert (weight.dtype, weight.shape) == (ir.DataType.FLOAT, (64, 64))


def test_without_zero_points_nothing_is_subtracted() -> None:
    check(blocks(32, zero_point=False, form="float"), feed(), ONCE, dequantize_blocks_when_loaded)


def test_the_runtime_keeps_the_float_weight_alone(tmp_path: Path) -> None:
    lowered = BACKEND.lower(blocks(32, form="float"), tmp_path, target=None)
    file = tmp_path / lowered.model_file
    assert operators(ir.load(file)) == WITH_ZERO_POINTS
    assert [node.op_type for node in optimized(file).graph.node] == ["MatMul"]
    assert file.stat().st_size < 64 * 64  # two weights a byte, scales and zero points; float would take four bytes each


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize(("size", "axis"), [(16, 0), (64, -2)])
def test_one_kernel_multiplies_in_blocks(kind: str, size: int, axis: int, zero_point: bool) -> None:
    model = typed(blocks(size, axis, kind, zero_point=zero_point, form="in blocks"))
    check(model, feed(), {"MatMulNBits": 1}, multiply_in_blocks)


def test_the_activation_is_not_rounded(tmp_path: Path) -> None:
    """ONNX Runtime's own fusion rounds it to 8 bits for each block, a difference of more than a thousandth."""
    model = typed(blocks(32))
    lowered = BACKEND.lower(model, tmp_path, target=None)
    assert [node.op_type for node in optimized(tmp_path / lowered.model_file).graph.node] == ["MatMulNBits"]
    expected = reference(model, feed())["y"]
    for session in (BACKEND.open_artifact(tmp_path / lowered.model_file), BACKEND.open_session(model)):
        assert np.abs(session.run(feed())["y"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_layer_keeps_its_name() -> None:
    model = typed(blocks(32))
    model.graph[1].name = "head"
    after = rewritten(model, multiply_in_blocks)
    assert [(node.name, node.outputs[0].name) for node in after.graph] == [("head", "y")]


@pytest.mark.parametrize(
    "model",
    [
        blocks(8),
        blocks(32, axis=1),
        blocks(32, kind="int8"),
        blocks(32, product="y = Gemm (x, d)"),
        blocks(32, product="a = MatMul (d, d) y = MatMul (x, a)"),
    ],
    ids=["8", "along the outputs", "int8", "Gemm", "multiplied by itself"],
)
def test_what_no_kernel_multiplies_is_float(tmp_path: Path, model: ir.Model) -> None:
    assert block_weights(typed(model)) == []
    lowered = BACKEND.lower(model, tmp_path, target=None)
    found = operators(ir.load(tmp_path / lowered.model_file))
    assert found["Cast"] == 2
    assert found["DequantizeLinear"] == 0


def test_an_activation_of_unknown_rank_is_multiplied_in_float() -> None:
    model = blocks(32)
    model.graph.inputs[0].shape = None
    assert block_weights(model) == []


def test_a_stack_of_matrices() -> None:
    text = "{ d = DequantizeLinear <axis = 0, block_size = 16> (w, s) y = MatMul (x, d) }"
    numbers = {"w": np.arange(-64, 64, dtype=np.int8).reshape(16, 4, 2), "s": np.full((1, 4, 2), 0.5, np.float32)}
    model = parse(f"(float[16,3,4] x) => (float[16,3,2] y) {text}", **numbers)
    x = np.random.default_rng(1).standard_normal((16, 3, 4)).astype(np.float32)
    check(model, {"x": x}, ONCE, dequantize_blocks_when_loaded)


@pytest.mark.parametrize("zero_point", [True, False])
def test_the_last_block_is_not_filled(zero_point: bool) -> None:
    model = blocks(32, kind="int8", zero_point=zero_point)
    for name in ("s", "z")[: 1 + zero_point]:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        model.graph.initializers[name].const_value = ir.tensor(np.repeat(tensor.numpy(), 2, axis=0)[:3], name=name)
    model.graph[0].attributes.add(ir.AttrInt64("block_size", 24))
    expected = {"Cast": 1, "Gather": 1, "Mul": 1, "MatMul": 1}
    if zero_point:
        expected |= {"Cast": 2, "Gather": 2, "Sub": 1}
    check(model, feed(), expected, dequantize_blocks_when_loaded)


IN_ROWS = "d = DequantizeLinear <axis = 0, block_size = 4> (w, s) y = MatMul (x, d)"
ROWS = {"w": np.ones((8, 4), np.int8), "s": np.ones((2, 4), np.float32)}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (f"(float[N,8] x, float[2,4] s) => (float[N,4] y) {{ {IN_ROWS} }}", {"w": ROWS["w"]}),
        (f"(float[4,N] x) => (float[8,N] y) {{ {IN_ROWS.replace('(x, d)', '(d, x)')} }}", ROWS),
        (f"(float[N,8] x) => (float[N,4] y, float[8,4] d) {{ {IN_ROWS} }}", ROWS),
        (f"(float16[N,8] x) => (float16[N,4] y) {{ {IN_ROWS} }}", {**ROWS, "s": np.ones((2, 4), np.float16)}),
        (f"(float[N,8] x) => (float[N,4] y) {{ {IN_ROWS} }}", {**ROWS, "w": ROWS["w"].astype(ml_dtypes.float8_e4m3fn)}),
        (
            f"(float[N,8] x) => (float[N,4] y) {{ {IN_ROWS.replace(', block_size = 4', '')} }}",
            {**ROWS, "s": np.ones(8, "f4")},
        ),
    ],
    ids=["scale of the graph", "read in front", "an output", "float16", "float8", "one block"],
)
def test_refuses(text: str, weights: dict[str, np.ndarray]) -> None:
    refuses(parse(text, **weights), multiply_in_blocks, dequantize_blocks_when_loaded)
