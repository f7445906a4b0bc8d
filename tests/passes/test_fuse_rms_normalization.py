from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fuse_rms_normalization import FuseRmsNormalization

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g ({dtype}[B, S, {size}] x) => ({dtype}[B, S, {size}] y)
<{dtype}[4] w = {{1, 2, 3, 4}}, float t = {{2}}, float eps = {{0.00001}}, float o = {{1}}, float minus = {{-0.5}},
 int64[1] last = {{-1}}, int64[1] one = {{1}}> {{ {body} }}
"""
SQUARE = "p = Pow(x, t) v = ReduceMean(p, last) a = Add(v, eps) "
NORM = SQUARE + "s = Sqrt(a) i = Reciprocal(s) n = Mul(x, i) "


def text(body: str, opset: int = 23, size: str = "4", dtype: str = "float") -> str:
    return TEXT.format(body=body, opset=opset, size=size, dtype=dtype)


@pytest.mark.parametrize(
    "body",
    [
        NORM + "y = Mul(n, w)",
        NORM.replace("n = Mul", "y = Mul"),
        NORM.replace("Pow(x, t)", "Mul(x, x)") + "y = Mul(n, w)",
        SQUARE + "s = Sqrt(a) i = Div(o, s) n = Mul(x, i) y = Mul(n, w)",
        SQUARE + "i = Pow(a, minus) n = Mul(x, i) y = Mul(n, w)",
        SQUARE + "s = Sqrt(a) n = Div(x, s) y = Mul(n, w)",
    ],
)
def test_rms_norm_becomes_one_operator(rewrite, body: str) -> None:
    assert rewrite(text(body), FuseRmsNormalization()).operators == ["RMSNormalization"]


def test_half_precision_is_normalized_in_float(rewrite) -> None:
    half = "z = Cast<to = 1>(x) " + NORM.replace("(x,", "(z,") + "h = Cast<to = 10>(n) y = Mul(h, w)"
    result = rewrite(text(half, dtype="float16"), FuseRmsNormalization(), atol=4e-3)
    assert result.operators == ["RMSNormalization"]
    assert result.model.graph[0].attributes["stash_type"].as_int() == ir.DataType.FLOAT.value


@pytest.mark.parametrize(
    ("body", "opset", "size"),
    [
        (NORM.replace("n = Mul", "y = Mul"), 22, "4"),
        (NORM.replace("n = Mul", "y = Mul"), 23, "C"),
        (NORM.replace("last", "one").replace("n = Mul", "y = Mul"), 23, "4"),
    ],
    ids=["old opset", "unknown channels", "other axis"],
)
def test_refusals(body: str, opset: int, size: str) -> None:
    assert not FuseRmsNormalization()(ir.from_onnx_text(text(body, opset, size))).modified
