from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.unsigned_activations import quantize_activations_to_uint8
from tests.backends.onnxruntime.rewrites import check, operators, rewritten
from tests.backends.portable import linear_case, parse

TEXT = """(float[N,8] x) => (float[N,8] y)
{
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    y = Neg (d)
}"""
FEED = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * 9}


def types(model: ir.Model) -> set[ir.DataType | None]:
    return {node.outputs[0].dtype for node in model.graph if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("zero_point", [-128, -20, 0, 127])
def test_int8_becomes_uint8(zero_point: int) -> None:
    model = parse(TEXT, s=np.float32(0.05), z=np.int8(zero_point))
    expected = {"QuantizeLinear": 1, "DequantizeLinear": 1, "Neg": 1}
    after = check(model, FEED, expected, quantize_activations_to_uint8)
    assert types(after) == {ir.DataType.UINT8}


def test_zero_point_left_out() -> None:
    text = TEXT.replace("QuantizeLinear (x, s, z)", "QuantizeLinear <output_dtype = 3> (x, s)")
    model = parse(text.replace("(q, s, z)", "(q, s)"), s=np.float32(0.05))
    expected = {"QuantizeLinear": 1, "DequantizeLinear": 1, "Neg": 1}
    after = check(model, FEED, expected, quantize_activations_to_uint8)
    assert types(after) == {ir.DataType.UINT8}


def test_equal_scales_with_other_zero_points_stay_apart() -> None:
    model = parse(
        """(float[N,8] x) => (float[N,8] y)
        {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            r = QuantizeLinear (d, s, o)
            y = DequantizeLinear (r, s, o)
        }""",
        s=np.float32(0.05),
        z=np.int8(3),
        o=np.int8(-90),
    )
    check(model, FEED, {"QuantizeLinear": 2, "DequantizeLinear": 2}, quantize_activations_to_uint8)


@pytest.mark.parametrize(
    ("edit", "zero_point"),
    [
        (("", ""), np.uint8(9)),
        (("y = Neg (d)", "t = Transpose (q)\n u = DequantizeLinear (t, s, z)\n y = Add (d, u)"), np.int8(9)),
        (("(float[N,8] y)", "(float[N,8] y, int8[N,8] q)"), np.int8(9)),
        (("(q, s, z)", "(q, s, other)"), np.int8(9)),
    ],
    ids=["uint8", "another reader", "output of the model", "another zero point"],
)
def test_refuses(edit: tuple[str, str], zero_point: np.generic) -> None:
    model = parse(TEXT.replace(*edit), s=np.float32(0.05), z=zero_point, other=np.int8(1))
    before, after = rewritten(model), rewritten(model, quantize_activations_to_uint8)
    assert operators(after) == operators(before)
    assert types(after) == types(before)


def test_refuses_one_scale_per_channel() -> None:
    text = TEXT.replace("Linear (", "Linear <axis = 1> (")
    model = parse(text, s=np.full(8, 0.05, np.float32), z=np.zeros(8, np.int8))
    assert types(rewritten(model, quantize_activations_to_uint8)) == {ir.DataType.INT8}


def test_weights_stay_int8() -> None:
    after = rewritten(linear_case("int8").model, quantize_activations_to_uint8)
    assert after.graph.initializers["w"].dtype == ir.DataType.INT8
    assert types(after) == {ir.DataType.UINT8}
