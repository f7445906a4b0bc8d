"""Weights in blocks: the form that ONNX Runtime evaluates when it loads the model, and what it fuses of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import FORM
from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.blocks import block_weights, dequantize_blocks_when_loaded
from tests.backends.onnxruntime.rewrites import check, operators, optimized, refuses
from tests.backends.portable import parse

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


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (blocks(16), True),
        (blocks(32, kind="uint4"), True),
        (blocks(64, kind="int8"), True),
        (blocks(32, product="y = Gemm (x, d)"), True),
        (blocks(8), False),
        (blocks(32, axis=1), False),
        (blocks(32, product="a = MatMul (x, d) b = MatMul (a, d) y = Tanh (b)"), False),
    ],
    ids=["16", "uint4", "int8", "Gemm", "8", "along the outputs", "read twice"],
)
def test_what_the_runtime_does_not_fuse_is_float_where_nothing_is_measured(
    tmp_path: Path, model: ir.Model, fused: bool
) -> None:
    (site,) = block_weights(model)
    assert site.forms[0] == ("in blocks" if fused else "float")
    site.nodes[0].metadata_props[FORM] = "in blocks"
    lowered = optimized(tmp_path / BACKEND.lower(model, tmp_path, target=None).model_file)
    assert ("MatMulNBits" in {node.op_type for node in lowered.graph.node}) is fused


def test_a_stack_of_matrices() -> None:
    text = "{ d = DequantizeLinear <axis = 0, block_size = 16> (w, s) y = MatMul (x, d) }"
    numbers = {"w": np.arange(-64, 64, dtype=np.int8).reshape(16, 4, 2), "s": np.full((1, 4, 2), 0.5, np.float32)}
    model = parse(f"(float[16,3,4] x) => (float[16,3,2] y) {text}", **numbers)
    x = np.random.default_rng(1).standard_normal((16, 3, 4)).astype(np.float32)
    check(model, {"x": x}, ONCE, dequantize_blocks_when_loaded)


@pytest.mark.parametrize("model", [blocks(32), blocks(8, form="in blocks")], ids=["by itself", "as chosen"])
def test_blocks_stay(model: ir.Model) -> None:
    refuses(model, dequantize_blocks_when_loaded)


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
            f"(float[N,9] x) => (float[N,4] y) {{ {IN_ROWS} }}",
            {"w": np.ones((9, 4), np.int8), "s": np.ones((3, 4), "f4")},
        ),
        (
            f"(float[N,8] x) => (float[N,4] y) {{ {IN_ROWS.replace(', block_size = 4', '')} }}",
            {**ROWS, "s": np.ones(8, "f4")},
        ),
    ],
    ids=["scale of the graph", "read in front", "an output", "float16", "float8", "not filled", "one block"],
)
def test_no_site(text: str, weights: dict[str, np.ndarray]) -> None:
    assert block_weights(parse(text, **weights)) == []
