from __future__ import annotations

import math

import onnx_ir as ir
import pytest

from qcompile.saturation import told_apart

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[4] x, float bound) => (float[4] y{extra})
<float a = {{-1}}, float b = {{6}}> {{ {body} }}
"""


@pytest.mark.parametrize(
    ("body", "bounds"),
    [
        ("v = Neg(x) y = Relu(v)", (0, math.inf)),
        ("v = Neg(x) y = HardSwish(v)", (-3, math.inf)),
        ("v = Neg(x) y = HardSigmoid(v)", (-2.5, 2.5)),
        ("v = Neg(x) y = HardSigmoid <alpha = 0.5, beta = 1.0> (v)", (-2, 0)),
        ("v = Neg(x) y = HardSigmoid <alpha = -0.5, beta = 1.0> (v)", (0, 2)),
        ("v = Neg(x) y = HardSigmoid <alpha = 0.0> (v)", (-math.inf, math.inf)),
        ("v = Neg(x) y = Clip(v, a, b)", (-1, 6)),
        ("v = Neg(x) y = Clip(v, , b)", (-math.inf, 6)),
        ("v = Neg(x) y = Clip(v, bound)", (-math.inf, math.inf)),
        ("v = Neg(x) r = HardSigmoid(v) s = HardSwish(v) y = Add(r, s)", (-3, math.inf)),
        ("v = Neg(x) r = Relu(v) y = Add(r, v)", (-math.inf, math.inf)),
        ("v = Neg(x) y = Neg(x)", (-math.inf, math.inf)),
    ],
)
def test_bounds_are_those_of_the_reader_that_tells_most_apart(body: str, bounds: tuple[float, float]) -> None:
    model = ir.from_onnx_text(TEXT.format(body=body, extra=""))
    assert told_apart(model.graph[0].outputs[0]) == pytest.approx(bounds, abs=1e-6)


def test_user_tells_everything_apart() -> None:
    model = ir.from_onnx_text(TEXT.format(body="v = Neg(x) y = Relu(v)", extra=", float[4] v"))
    assert told_apart(model.graph[0].outputs[0]) == (-math.inf, math.inf)
