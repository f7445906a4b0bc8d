from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.fuse_rotary_embedding import FuseRotaryEmbedding

TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[3, 2, S, 8] x, float[{batch}, S, 4] f) => (float[3, 2, S, 8] y)
<int64[1] zero = {{0}}, int64[1] half = {{4}}, int64[1] end = {{9223372036854775807}}, int64[1] three = {{3}},
 int64[1] one = {{1}}, int64[1] split = {{{split}}}> {{
    ff = Concat<axis = -1>(f, f) c = Cos(ff) s = Sin(ff) cu = Unsqueeze(c, one) su = Unsqueeze(s, one)
    a = Slice(x, zero, split, three, one) b = Slice(x, split, end, three, one)
    n = Neg(b) r = Concat<axis = -1>(n, a) xc = Mul({order}) rs = Mul(r, su) y = Add(xc, rs)
}}
"""


def text(opset: int = 23, batch: int = 3, split: int = 4, order: str = "x, cu") -> str:
    return TEXT.format(opset=opset, batch=batch, split=split, order=order)


@pytest.mark.parametrize("order", ["x, cu", "cu, x"])
def test_rotation_becomes_one_operator(rewrite, order: str) -> None:
    result = rewrite(text(order=order), FuseRotaryEmbedding())
    assert sorted(result.operators) == ["Cos", "RotaryEmbedding", "Sin"]


@pytest.mark.parametrize("model", [text(opset=22), text(split=3)], ids=["old opset", "unequal halves"])
def test_refusals(model: str) -> None:
    parsed = ir.from_onnx_text(model.replace("int64[1] split = {3}", "int64[1] split = {5}"))
    assert not FuseRotaryEmbedding()(parsed).modified
