from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

from qcompile.graph import linears
from qcompile.passes.canonicalize_linears import CanonicalizeLinears

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[{x}] x) => (float[{y}] y)
<float[2, 2] w = {{1, 2, 3, 4}}, float[1, 2, 2] w3 = {{1, 2, 3, 4}}, float[1, 1, 2] b = {{1, 2}}, float[1] s = {{3}},
 float[2] plain = {{5, 6}}, float[2, 1] rows = {{7, 8}}> {{ {body} }}
"""


def text(body: str, x: str = "B, S, 2", y: str = "B, S, 2") -> str:
    return TEXT.format(body=body, x=x, y=y)


@pytest.mark.parametrize(
    "body", ["p = MatMul(x, w) y = Add(p, b)", "p = MatMul(x, w) y = Add(s, p)", "p = MatMul(x, w3) y = Add(b, p)"]
)
def test_axes_of_one_are_dropped(rewrite, body: str) -> None:
    result = rewrite(text(body), CanonicalizeLinears())
    (linear,) = linears(result.model)
    assert linear.bias is not None
    assert (linear.weight.shape, linear.bias.shape) == (ir.Shape([2, 2]), ir.Shape([2]))
    assert {finding.action for finding in result.findings} == {"converted"}


def test_a_shared_bias_is_not_changed_under_its_other_reader(rewrite) -> None:
    body = "p = MatMul(x, w) q = Add(p, b) r = Relu(b) y = Add(q, r)"
    result = rewrite(text(body), CanonicalizeLinears())
    assert result.model.graph.initializers["b"].shape == ir.Shape([1, 1, 2])
    assert linears(result.model)[0].bias is not None


@pytest.mark.parametrize(
    "model",
    [
        text("p = MatMul(x, w) y = Add(p, plain)"),
        text("p = MatMul(w, x) y = Add(p, b)", x="2, S", y="1, 2, S"),
        text("p = MatMul(x, w) y = Add(p, b)", x="S, 2", y="1, S, 2"),
        text("p = MatMul(x, w) y = Add(p, rows)", x="2, 2", y="2, 2"),
        text("y = MatMul(x, w3)", x="S, 2", y="1, S, 2"),
    ],
    ids=["canonical", "constant first", "bias adds an axis", "bias along another axis", "weight adds an axis"],
)
def test_refusals(model: str) -> None:
    parsed = ir.from_onnx_text(model)
    common_passes.ShapeInferencePass(strict_mode=False)(parsed)
    assert not CanonicalizeLinears()(parsed).modified
