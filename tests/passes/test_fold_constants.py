from __future__ import annotations

from qcompile.passes.fold_constants import FoldConstants

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[B, 4] y)
<float[4] w = {1, 2, 3, 4}, float o = {1}> { v = Add(w, o) y = Mul(x, v) }
"""


def test_small_constants_are_folded_under_their_name(rewrite) -> None:
    result = rewrite(TEXT, FoldConstants())
    assert result.operators == ["Mul"]
    assert result.model.graph.initializers["v"].const_value.numpy().tolist() == [2, 3, 4, 5]


def test_large_constants_stay(rewrite) -> None:
    assert rewrite(TEXT, FoldConstants(size_limit=3)).operators == ["Add", "Mul"]
