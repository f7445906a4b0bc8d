from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

from qcompile.passes.fuse_attention import FuseAttention

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[B, 2, Q, 4] q, float[B, {heads}, K, 4] k, float[B, 2, K, 4] v, float[1, 1, Q, K] m, bool[1, 1, Q, K] keep,
   float[B, K, 2, 4] kb, float[B, 2, 3, 4] kf, float[B, 2, 3, 4] vf) => (float[B, 2, Q, 4] y{extra})
<float h = {{0.5}}, float e = {{2}}, float z = {{0}}, float low = {{-10000000}}, float little = {{-1}},
 int64[3] flat = {{-1, 3, 4}}, int64[4] turned = {{-1, 2, 4, 3}}, int64[3] mixed = {{-1, 6, 4}}> {{ {body} }}
"""
TRANSPOSE = "t = Transpose<perm = [0, 1, 3, 2]>(k) "
FLATTENED = "f = Reshape(kf, {flat}) r = Transpose<perm = [0, 2, 1]>(f) t = Reshape(r, {turned}) s = MatMul(q, t) "
FLATTENED += "p = Softmax<axis = -1>(s) y = MatMul(p, vf)"
END = "p = Softmax<axis = -1>(s) y = MatMul(p, v)"


def text(body: str, opset: int = 23, heads: str = "2", extra: str = "") -> str:
    return TEXT.format(body=body, opset=opset, heads=heads, extra=extra)


@pytest.mark.parametrize(
    ("body", "scale", "operators"),
    [
        (TRANSPOSE + "s = MatMul(q, t) " + END, 1.0, ["Attention"]),
        (TRANSPOSE + "a = MatMul(q, t) s = Mul(a, h) " + END, 0.5, ["Attention"]),
        (TRANSPOSE + "a = MatMul(q, t) b = Div(a, e) s = Add(m, b) " + END, 0.5, ["Attention"]),
        (TRANSPOSE + "u = Mul(q, h) w = Mul(t, h) s = MatMul(u, w) " + END, 0.25, ["Attention"]),
        ("t = Transpose<perm = [0, 2, 3, 1]>(kb) s = MatMul(q, t) " + END, 1.0, ["Transpose", "Attention"]),
        (
            TRANSPOSE
            + "a = MatMul(q, t) s = Add(a, m) p = Softmax(s) i = IsNaN(p) w = Where(i, z, p) y = MatMul(w, v)",
            1.0,
            ["Attention"],
        ),
        (FLATTENED.format(flat="flat", turned="turned"), 1.0, ["Attention"]),
    ],
    ids=["bare", "scaled", "masked", "scaled q and k", "key with heads second", "guarded", "key by way of three axes"],
)
def test_attention_becomes_one_operator(rewrite, body: str, scale: float, operators: list[str]) -> None:
    result = rewrite(text(body), FuseAttention())
    assert result.operators == operators
    assert result.model.graph[-1].attributes["scale"].as_float() == pytest.approx(scale)


def test_a_filled_mask_becomes_an_added_one(rewrite) -> None:
    # Row by row: a row that is wholly masked is left to the runtimes, so every row keeps its first key.
    ones = "i = Shape(keep) o = ConstantOfShape<value = float[1] {1}>(i) j = Trilu<upper = 0>(o) c = Cast<to = 9>(j) "
    body = ones + TRANSPOSE + "a = MatMul(q, t) s = Where(c, a, low) " + END
    assert rewrite(text(body), FuseAttention()).operators[-2:] == ["Where", "Attention"]


def test_layers_that_read_one_mask(rewrite) -> None:
    """With one value for what is masked they share what they add; another value, and the user, keep theirs."""
    ones = "i = Shape(keep) o = ConstantOfShape<value = float[1] {1}>(i) j = Trilu<upper = 0>(o) c = Cast<to = 9>(j) "
    layers = [
        f"t{i} = Transpose<perm = [0, 1, 3, 2]>(k) a{i} = MatMul({q}, t{i}) s{i} = Where(c, a{i}, {fill}) "
        f"p{i} = Softmax<axis = -1>(s{i}) {y} = MatMul(p{i}, v) "
        for i, q, fill, y in ((0, "q", "low", "b"), (1, "b", "low", "d"), (2, "d", "c_fill", "y"))
    ]
    model = text(ones + "".join(layers)).replace("<float h", "<float c_fill = {-20000}, float c_zero = {1}, float h")
    fused = rewrite(model, FuseAttention()).model
    wheres = [node for node in fused.graph if node.op_type == "Where"]
    assert [[value.name for value in node.inputs] for node in wheres] == [
        ["c", "c_zero_1", "c_fill_1"],
        ["c", "c_zero_1", "c_fill_1"],
        ["c", "c_zero_1", "c_fill"],
    ]


@pytest.mark.parametrize(
    ("body", "opset", "heads", "extra"),
    [
        (TRANSPOSE + "s = MatMul(q, t) " + END, 22, "2", ""),
        (TRANSPOSE + "s = MatMul(q, t) " + END, 23, "1", ""),
        (TRANSPOSE + "s = MatMul(q, t) " + END, 23, "H", ""),
        (TRANSPOSE + "s = MatMul(q, t) " + END, 23, "2", ", float[B, 2, Q, K] p"),
        (TRANSPOSE + "s = MatMul(q, t) p = Softmax<axis = 2>(s) y = MatMul(p, v)", 23, "2", ""),
        (TRANSPOSE + "a = MatMul(q, t) s = Where(keep, a, little) " + END, 23, "2", ""),
        (TRANSPOSE + "a = MatMul(q, t) s = Mul(a, m) " + END, 23, "2", ""),
        (FLATTENED.format(flat="mixed", turned="turned"), 23, "2", ""),
    ],
    ids=[
        "old opset",
        "one key head",
        "unknown heads",
        "weights read",
        "other axis",
        "weak fill",
        "computed scale",
        "key mixes heads and sequence",
    ],
)
def test_refusals(body: str, opset: int, heads: str, extra: str) -> None:
    model = ir.from_onnx_text(text(body, opset, heads, extra))
    common_passes.ShapeInferencePass(strict_mode=False)(model)
    assert not FuseAttention()(model).modified
