from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fuse_hard_swish import FuseHardSwish

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[N, 4] x) => (float[N, 4] y{extra})
<float o = {{0}}, float c = {{3}}, float s = {{6}}, float t = {{5}}> {{ {body} }}
"""
SWISH = "a = Add(x, c) b = Clip(a, o, s) m = Mul(x, b) y = Div(m, s)"


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (SWISH, ["HardSwish"]),
        ("a = Add(c, x) b = Clip(a, o, s) m = Mul(b, x) y = Div(m, s)", ["HardSwish"]),
        ("a = Add(x, c) b = Clip(a, o, s) m = Div(b, s) y = Mul(x, m)", ["HardSwish"]),
        ("m = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, m)", ["HardSwish"]),
        ("a = Add(x, c) b = Clip(a, o, s) y = Div(b, s)", ["HardSigmoid"]),
    ],
)
def test_hard_swish_is_recognised_in_every_order(rewrite, body: str, operators: list[str]) -> None:
    assert rewrite(TEXT.format(body=body, opset=20, extra=""), FuseHardSwish()).operators == operators


@pytest.mark.parametrize(
    ("body", "opset", "extra"),
    [
        (SWISH, 13, ""),
        (SWISH, 20, ", float[N, 4] b"),
        (SWISH.replace("Add(x, c)", "Add(x, t)"), 20, ""),
        (SWISH.replace("Clip(a, o, s)", "Clip(a, o, t)"), 20, ""),
        (SWISH.replace("Div(m, s)", "Div(m, t)"), 20, ""),
        ("m = HardSigmoid <alpha = 0.2, beta = 0.5> (x) y = Mul(x, m)", 20, ""),
    ],
    ids=["old opset", "step with another reader", "other shift", "other bound", "other divisor", "other slope"],
)
def test_what_is_not_hard_swish_stays(body: str, opset: int, extra: str) -> None:
    model = ir.from_onnx_text(TEXT.format(body=body, opset=opset, extra=extra))
    assert not FuseHardSwish()(model).modified
