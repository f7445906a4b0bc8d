from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.passes.remove_neutral_operators import RemoveNeutralOperators

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[{y}] y)
<float one = {{1}}, float zero = {{0}}, float two = {{2}}, float[2, 1, 1] ones = {{1, 1}}, int64[1] from = {{0}},
 int64[1] all = {{9223372036854775807}}, int64[1] four = {{4}}, int64[1] three = {{3}}, int64[1] last = {{1}},
 int64[1] step = {{1}}> {{ a = Abs(x) {body} }}
"""
NEUTRAL = [
    "b = Mul(a, one)",
    "b = Mul(one, a)",
    "b = Add(zero, a)",
    "b = Sub(a, zero)",
    "b = Div(a, one)",
    "b = Slice(a, from, all, last, step)",
    "b = Slice(a, from, four, last, step)",
]
KEPT = ["b = Mul(a, two)", "b = Sub(zero, a)", "b = Div(one, a)", "b = Slice(a, from, three, last, step)"]


@pytest.mark.parametrize("body", NEUTRAL)
def test_what_changes_nothing_goes(rewrite, body: str) -> None:
    model = rewrite(TEXT.format(y="N, 4", body=f"{body} y = Neg(b)"), RemoveNeutralOperators()).model
    assert [node.op_type for node in model.graph if node.op_type != "Identity"] == ["Abs", "Neg"]


@pytest.mark.parametrize("body", [*KEPT, "b = Mul(a, ones)"])
def test_what_changes_numbers_or_shapes_stays(body: str) -> None:
    model = ir.from_onnx_text(TEXT.format(y="N, 4", body=f"{body} y = Neg(b)"))
    assert not RemoveNeutralOperators()(model).modified
