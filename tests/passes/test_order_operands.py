from __future__ import annotations

import pytest

from qcompile.passes.order_operands import OrderOperands

TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 4] a, float[N, 4] b) => (float[N, 4] y) <float[4] c = {{1, 2, 3, 4}}, float[4] d = {{5, 6, 7, 8}}> {{
    {body}
}}
"""


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = Mul(c, a)", ["a", "c"]),
        ("e = Relu(a) y = Add(e, b)", ["b", "e"]),
        ("e = Relu(a) f = Relu(b) y = Add(f, e)", ["e", "f"]),
    ],
)
def test_operands_come_in_order_of_computation(rewrite, body: str, inputs: list[str]) -> None:
    result = rewrite(TEXT.format(body=body), OrderOperands())
    assert result.modified
    assert [value.name for value in result.model.graph[-1].inputs] == inputs


@pytest.mark.parametrize("body", ["y = Mul(a, c)", "y = Add(b, a)", "e = Add(d, c) y = Add(a, e)", "y = Sub(c, a)"])
def test_other_operands_stay(rewrite, body: str) -> None:
    assert not rewrite(TEXT.format(body=body), OrderOperands()).modified
