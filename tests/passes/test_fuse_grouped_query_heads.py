from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

from qcompile.passes.fuse_grouped_query_heads import FuseGroupedQueryHeads

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[2, 6, 3, 4] q, float[2, {heads}, 5, 4] k, float[2, {heads}, 5, 4] v, float[3, 5] m) => (float[2, 6, 3, 4] y)
<int64[1] a = {{{axis}}}, int64[5] e = {{{expanded}}}, int64[4] r = {{2, 6, 5, 4}}> {{ {body} }}
"""
KEY = "k1 = Unsqueeze(k, a) k2 = Expand(k1, e) k3 = Reshape(k2, r) "
VALUE = "v1 = Unsqueeze(v, a) v2 = Expand(v1, e) v3 = Reshape(v2, r) "
ATTENTION = "y = Attention<scale = 0.5>(q, k3, v3, m)"


def text(body: str, heads: int = 2, axis: int = 2, expanded: str = "2, 2, 3, 5, 4") -> str:
    return TEXT.format(body=body, heads=heads, axis=axis, expanded=expanded)


def test_the_repeat_of_heads_goes_into_attention(rewrite) -> None:
    result = rewrite(text(KEY + VALUE + ATTENTION), FuseGroupedQueryHeads())
    assert result.operators == ["Attention"]
    node = result.model.graph[0]
    assert [value.name for value in node.inputs] == ["q", "k", "v", "m"]
    assert node.attributes["scale"].as_float() == 0.5


@pytest.mark.parametrize(
    "model",
    [
        text(KEY + VALUE + ATTENTION, axis=1, expanded="2, 3, 2, 5, 4"),
        text(KEY + "y = Attention<scale = 0.5>(q, k3, v, m)", heads=6, expanded="2, 6, 1, 5, 4"),
    ],
    ids=["tiled heads", "only the key"],
)
def test_refusals(model: str) -> None:
    parsed = ir.from_onnx_text(model)
    common_passes.ShapeInferencePass(strict_mode=False)(parsed)
    assert not FuseGroupedQueryHeads()(parsed).modified
