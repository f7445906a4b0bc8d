from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fuse_layer_normalization import FuseLayerNormalization

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[B, S, {size}] x, float[B, S, 4] r) => (float[B, S, 4] y)
<float[4] w = {{1, 2, 3, 4}}, float[1, 1, 4] b = {{1, 2, 3, 5}}, float t = {{2}}, float eps = {{0.00001}},
 int64[1] last = {{-1}}, int64[1] two = {{2}}, int64[1] one = {{1}}> {{ {body} }}
"""
MEAN = "m = ReduceMean(x, last) d = Sub(x, m) "
NORM = MEAN + "p = Pow(d, t) v = ReduceMean(p, two) a = Add(v, eps) s = Sqrt(a) n = Div(d, s) "


def text(body: str, opset: int = 18, size: str = "4") -> str:
    return TEXT.format(body=body, opset=opset, size=size)


@pytest.mark.parametrize(
    "body",
    [
        NORM + "nw = Mul(n, w) y = Add(nw, b)",
        NORM + "nw = Mul(n, b) y = Add(nw, w)",
        MEAN + "p = Mul(d, d) v = ReduceMean<keepdims = 1>(p, last) a = Add(v, eps) s = Sqrt(a) i = Reciprocal(s) "
        "n = Mul(d, i) nw = Mul(n, w) y = Add(nw, b)",
        NORM.replace("n = Div", "y = Div"),
        NORM + "y = Mul(n, w)",
    ],
)
def test_layer_norm_becomes_one_operator(rewrite, body: str) -> None:
    result = rewrite(text(body), FuseLayerNormalization())
    assert result.operators == ["LayerNormalization"]
    assert all(value.shape == ir.Shape([4]) for value in result.model.graph[0].inputs[1:])


def test_a_weight_keeps_its_name(rewrite) -> None:
    result = rewrite(text(NORM + "nw = Mul(n, w) y = Add(nw, b)"), FuseLayerNormalization())
    assert result.model.graph[0].inputs[1].name == "w"


def test_a_computed_addend_is_no_bias(rewrite) -> None:
    result = rewrite(text(NORM + "nw = Mul(n, w) y = Add(nw, r)"), FuseLayerNormalization())
    assert result.operators == ["LayerNormalization", "Add"]


def test_a_computed_factor_is_no_weight(rewrite) -> None:
    result = rewrite(text(NORM + "nw = Mul(n, r) y = Add(nw, b)"), FuseLayerNormalization())
    assert result.operators == ["LayerNormalization", "Mul", "Add"]


@pytest.mark.parametrize(
    ("body", "opset", "size"),
    [
        (NORM.replace("n = Div", "y = Div"), 17, "4"),
        (NORM.replace("n = Div", "y = Div"), 18, "C"),
        (NORM.replace("last", "one").replace("two", "one").replace("n = Div", "y = Div"), 18, "4"),
        (NORM.replace("two", "one").replace("n = Div", "y = Div"), 18, "4"),
        (NORM.replace("Add(v, eps)", "Add(v, r)").replace("n = Div", "y = Div"), 18, "4"),
    ],
    ids=["old opset", "unknown channels", "other axis", "two axes", "computed epsilon"],
)
def test_refusals(body: str, opset: int, size: str) -> None:
    model = ir.from_onnx_text(text(body, opset, size))
    assert not FuseLayerNormalization()(model).modified
