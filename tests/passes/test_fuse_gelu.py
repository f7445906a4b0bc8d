from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fuse_gelu import FuseGelu

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[N, 4] x) => (float[N, 4] y{extra})
<float h = {{0.5}}, float o = {{1}}, float s = {{1.41421356}}, float r = {{0.70710678}}, float k = {{0.044715}},
 float p = {{0.7978845608}}, float c = {{3}}, float q = {{1.702}}> {{ {body} }}
"""
ERF = [
    "d = Div(x, s) e = Erf(d) f = Add(e, o) m = Mul(f, h) y = Mul(x, m)",
    "d = Mul(x, r) e = Erf(d) f = Add(e, o) m = Mul(x, f) y = Mul(m, h)",
    "m = Mul(x, h) d = Div(x, s) e = Erf(d) f = Add(e, o) y = Mul(m, f)",
    "d = Div(x, s) e = Erf(d) f = Add(e, o) m = Mul(x, h) y = Mul(f, m)",
]
TANH = [
    "t = Pow(x, c) u = Mul(t, k) v = Add(x, u) w = Mul(v, p) e = Tanh(w) f = Add(e, o) m = Mul(f, h) y = Mul(x, m)",
    "a = Mul(x, x) t = Mul(x, a) u = Mul(t, k) v = Add(x, u) w = Mul(v, p) e = Tanh(w) f = Add(e, o) m = Mul(x, f) "
    "y = Mul(m, h)",
    "b = Mul(x, k) a = Mul(x, b) u = Mul(x, a) v = Add(x, u) w = Mul(v, p) e = Tanh(w) f = Add(e, o) m = Mul(x, h) "
    "y = Mul(f, m)",
    "m = Mul(x, h) z = Mul(x, p) b = Mul(x, k) a = Mul(x, b) u = Add(a, o) w = Mul(z, u) e = Tanh(w) f = Add(e, o) "
    "y = Mul(m, f)",
]


@pytest.mark.parametrize(("body", "approximate"), [(b, "none") for b in ERF] + [(b, "tanh") for b in TANH])
def test_gelu_is_recognised_in_every_order(rewrite, body: str, approximate: str) -> None:
    result = rewrite(TEXT.format(body=body, opset=20, extra=""), FuseGelu())
    assert result.operators == ["Gelu"]
    assert result.model.graph[0].attributes["approximate"].as_string() == approximate


def test_the_name_of_the_last_node_survives() -> None:
    model = ir.from_onnx_text(TEXT.format(body=ERF[0], opset=20, extra=""))
    model.graph[-1].name = "act"
    model.graph[-1].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'mlp.act', 'gelu']"
    result = FuseGelu()(model)
    assert model.graph[0].name == "act"
    assert [(finding.layer, finding.action) for finding in result.findings] == [("mlp.act", "fused")]


@pytest.mark.parametrize(
    ("body", "opset", "extra"),
    [
        (ERF[0], 19, ""),
        (ERF[0], 20, ", float[N, 4] f"),
        ("d = Mul(x, q) e = Sigmoid(d) y = Mul(x, e)", 20, ""),
        (ERF[0].replace("Div(x, s)", "Div(x, q)"), 20, ""),
        (TANH[0].replace("Pow(x, c)", "Pow(x, s)").replace("y = Mul(x, m)", "z = Abs(m) y = Mul(x, z)"), 20, ""),
    ],
    ids=["old opset", "step with another reader", "sigmoid", "other scale", "other power"],
)
def test_what_is_not_gelu_stays(body: str, opset: int, extra: str) -> None:
    model = ir.from_onnx_text(TEXT.format(body=body, opset=opset, extra=extra))
    assert not FuseGelu()(model).modified
