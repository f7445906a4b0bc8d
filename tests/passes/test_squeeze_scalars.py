from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.squeeze_scalars import SqueezeScalars

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[{x}] x) => (float[{y}] y)
<float[1, 1] c = {{2}}, float[2] v = {{2, 3}}, float s = {{2}}> {{ {body} }}
"""


@pytest.mark.parametrize("body", ["y = Mul(x, c)", "y = Sub(c, x)", "a = Add(x, c) b = Mul(c, a) y = Add(b, v)"])
def test_axes_of_one_are_dropped(rewrite, body: str) -> None:
    result = rewrite(TEXT.format(body=body, x="B, 2", y="B, 2"), SqueezeScalars())
    assert result.modified
    scalars = [value for node in result.model.graph for value in node.inputs if value.const_value is not None]
    assert {len(value.shape) for value in scalars if value.name != "v"} == {0}


@pytest.mark.parametrize(("body", "y"), [("y = Mul(x, c)", "1, 2"), ("y = Mul(x, s)", "2"), ("y = Add(x, v)", "2")])
def test_refusals(body: str, y: str) -> None:
    assert not SqueezeScalars()(ir.from_onnx_text(TEXT.format(body=body, x="2", y=y))).modified


def test_a_constant_that_the_user_reads_keeps_its_axes(rewrite) -> None:
    text = TEXT.format(body="y = Mul(x, c)", x="B, 2", y="B, 2").replace(" y)", " y, float[1, 1] c)")
    assert rewrite(text, SqueezeScalars()).model.graph.initializers["c"].shape == ir.Shape([1, 1])
