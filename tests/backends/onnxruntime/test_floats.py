from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.backends.onnxruntime.floats import restore_float_weights
from qcompile.backends.onnxruntime.linears import fuse_integer_linears
from qcompile.backends.onnxruntime.saturation import drop_saturated_clips
from tests.backends.onnxruntime.rewrites import check, optimized, refuses, rewritten
from tests.backends.portable import conv_case, linear_case, parse, weight

FLOAT_CONV = {"QuantizeLinear": 1, "DequantizeLinear": 1, "Conv": 1, "Abs": 1}


@pytest.mark.parametrize("bias", ["int32", "float32"])
def test_conv_with_a_float_result(bias: str) -> None:
    case = conv_case(bias=bias, requantized=False)
    check(case.model, case.feed, FLOAT_CONV, restore_float_weights, step=case.step)


def test_conv_transpose_stays_float_even_when_its_result_is_quantized() -> None:
    (finding,) = restore_float_weights(conv_case(kind="ConvTranspose", bias="float32").model.clone())
    assert "no integer ConvTranspose" in finding.reason


def test_conv_transpose() -> None:
    case = conv_case(kind="ConvTranspose", bias="float32", requantized=False)
    expected = {**FLOAT_CONV, "ConvTranspose": 1}
    del expected["Conv"]
    check(case.model, case.feed, expected, restore_float_weights, step=case.step)


def test_finding_names_the_layer_and_the_reason() -> None:
    case = conv_case(requantized=False)
    next(node for node in case.model.graph if node.op_type == "Conv").name = "stem.conv"
    (finding,) = restore_float_weights(case.model.clone())
    assert (finding.layer, finding.action) == ("stem.conv", "kept")
    assert "quantized result" in finding.reason


def test_matmul_of_a_float_activation() -> None:
    model = parse(
        "(float[N,8] x) => (float[N,4] y) { f = DequantizeLinear <axis = 1> (w, ws, wz)\n y = MatMul (x, f) }",
        w=np.arange(-16, 16, dtype=np.int8).reshape(8, 4),
        ws=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        wz=np.array([0, 1, 2, -3], np.int8),
    )
    feed = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    check(model, feed, {"MatMul": 1}, restore_float_weights)


@pytest.mark.parametrize(
    ("text", "scale", "zero_point"),
    [
        (
            """(float[N,8] x) => (float[N,4] y)
            { f = DequantizeLinear <axis = 0, block_size = 4> (w, ws, wz)\n y = MatMul (x, f) }""",
            np.ones((2, 4), np.float32),
            np.zeros((2, 4), np.int8),
        ),
        (
            """(float16[N,8] x) => (float16[N,4] y)
            { f = DequantizeLinear <axis = 1> (w, ws, wz)\n y = MatMul (x, f) }""",
            np.ones(4, np.float16),
            np.zeros(4, np.int8),
        ),
    ],
    ids=["scales per block", "float16"],
)
def test_refuses(text: str, scale: np.ndarray, zero_point: np.ndarray) -> None:
    refuses(parse(text, w=np.ones((8, 4), np.int8), ws=scale, wz=zero_point), restore_float_weights)


@pytest.mark.parametrize("bias", ["int32", "float32"])
@pytest.mark.parametrize(
    ("behind", "zero_point", "integer"),
    [
        ("", 110, True),
        ("Relu (c)", 0, True),
        ("Relu (c)", 110, True),  # negative values have quantized values of their own, which are clipped
        ("Clip (c, low, high)", 0, True),
        ("Clip (c, low, high)", 110, True),
        ("Clip (c, low, s)", 0, True),  # s = 0.03 lies within the quantized range
        ("Sigmoid (c)", 0, False),
    ],
)
def test_foresees_what_the_runtime_makes_integer(
    tmp_path: Path, behind: str, zero_point: int, integer: bool, bias: str
) -> None:
    model = conv_case(behind=behind, bias=bias, zero_point=zero_point).model
    kept = restore_float_weights(rewritten(model, drop_saturated_clips))
    assert [finding.action for finding in kept] == ([] if integer else ["kept"])
    lowered = backends.get("onnxruntime").lower(model, tmp_path, target=None)
    kernels = {node.op_type for node in optimized(tmp_path / lowered.model_file).graph.node}
    assert ("QLinearConv" in kernels) == integer


def test_leaves_linears_alone_after_their_fusion() -> None:
    assert restore_float_weights(rewritten(linear_case().model, fuse_integer_linears)) == ()


def test_the_weight_of_what_is_computed_from_constants_stays_in_8_bits_and_is_multiplied_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = parse(
        """(float[N,32] x) => (float[5,24] y, float[N,32] z)
        {
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            r = Relu (table)
            y = MatMul (r, f)
            z = Neg (x)
        }""",
        table=random.standard_normal((5, 32)).astype(np.float32),
        **weight(random, (32, 24), 1, zero=3),
    )
    feed = {"x": random.standard_normal((3, 32)).astype(np.float32)}
    expected = {"Cast": 2, "Sub": 1, "Mul": 1, "Relu": 1, "MatMul": 1, "Neg": 1}
    after = check(model, feed, expected, restore_float_weights)
    assert after.graph.initializers["w"].dtype == ir.DataType.INT8
    lowered = backends.get("onnxruntime").lower(model, tmp_path, target=None)
    assert not lowered.findings
    assert {node.op_type for node in optimized(tmp_path / lowered.model_file).graph.node} <= {"Identity", "Neg"}
