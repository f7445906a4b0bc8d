from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fold_weight_views import FoldWeightViews

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[B, {inputs}] x) => (float[B, {outputs}] y{extra})
<{dtype}[{shape}] w = {{1, 2, 3, 4, 5, 6}}, int64[2] r = {{0, -1}}, int64[2] r2 = {{3, 2}}, int64[1] zero = {{0}}>
{{ {body} y = MatMul(x, v) }}
"""


def text(body: str, *, shape: str = "2, 3", inputs: int = 3, dtype: str = "float", extra: str = "") -> str:
    return TEXT.format(body=body, shape=shape, inputs=inputs, outputs=6 // inputs, dtype=dtype, extra=extra)


@pytest.mark.parametrize(
    "model",
    [
        text("v = Transpose(w)"),
        text("v = Transpose<perm = [1, 0]>(w)"),
        text("v = Reshape(w, r2)"),
        text("u = Reshape(w, r) v = Transpose(u)"),
        text("v = Squeeze(w, zero)", shape="1, 3, 2"),
        text("v = Squeeze(w)", shape="1, 3, 2"),
        text("u = Unsqueeze(w, zero) v = Squeeze(u, zero)", shape="3, 2"),
        text("v = Flatten<axis = 1>(w)", shape="3, 2, 1"),
        text("c = Cast<to = 1>(w) v = Transpose(c)", dtype="float16"),
        text("c = Cast<to = 1>(w) v = Transpose(c)", dtype="double"),
    ],
)
def test_views_of_a_weight_become_a_lazy_initializer(rewrite, model: str) -> None:
    result = rewrite(model, FoldWeightViews())
    assert result.operators == ["MatMul"]
    weight = result.model.graph.initializers["v"]
    assert isinstance(weight.const_value, ir.LazyTensor)
    assert (weight.shape, weight.dtype) == (ir.Shape([3, 2]), ir.DataType.FLOAT)


@pytest.mark.parametrize(
    "model",
    [
        text("c = Cast<to = 1>(w) v = Identity(c)", dtype="int32", shape="3, 2"),
        text("i = Shape(x) j = Concat<axis = 0>(zero, zero) s = Add(j, r2) z = Sub(s, j) v = Reshape(w, z)"),
        text("v = Transpose(w)", extra=", float[3, 2] v"),
    ],
    ids=["integers", "computed shape", "graph output"],
)
def test_refusals(model: str) -> None:
    assert not FoldWeightViews()(ir.from_onnx_text(model)).modified


def test_equal_views_of_one_weight_become_one_initializer(rewrite) -> None:
    model = """<ir_version: 10, opset_import: ["" : 20]> g (float[B, 2] x) => (float[B, 2] y)
    <float[2, 2] w = {1, 2, 3, 4}, int64[2] r = {2, 2}, int64[1] zero = {0}>
    { t = Transpose(w) a = MatMul(x, t)
      u = Unsqueeze(w, zero) v = Squeeze(u, zero) s = Transpose<perm = [1, 0]>(w) b = MatMul(a, s)
      c = MatMul(b, v) z = Transpose(v) q = Reshape(w, r) d = MatMul(c, q) y = MatMul(d, z) }"""
    result = rewrite(model, FoldWeightViews())
    weights = [node.inputs[1] for node in result.model.graph]
    assert weights[0] is weights[1]  # Transpose of w, with and without perm
    assert len({weight.name for weight in weights}) == 4
    assert [weight.const_value.numpy().ravel().tolist() for weight in weights] == [
        [1, 3, 2, 4],
        [1, 3, 2, 4],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [1, 3, 2, 4],
    ]
