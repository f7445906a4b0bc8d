"""The table for processors on which nothing can be measured: what was measured to be slower, and nothing else."""

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile import backends, tuning
from qcompile.work import Work

IMAGE = "float[1, 3, 9, 9] x"
WIDE = "float[1, 16, 9, 9] x"
TOKENS = "float[1, 5, 16] x"


@pytest.mark.parametrize(
    ("given", "weight", "body", "recipe", "slow"),
    [
        (IMAGE, [8, 3, 3, 3], "y = Conv(x, w)", "w8a8-static", True),
        (IMAGE, [8, 3, 3, 3], "a = Conv(x, w) y = Tanh(a)", "w8a8-static", True),
        (IMAGE, [8, 3, 5, 5], "a = Conv(x, w) y = Tanh(a)", "w8a8-static", False),
        (WIDE, [8, 16, 1, 1], "y = Conv(x, w)", "w8a8-static", True),
        (WIDE, [8, 16, 3, 3], "y = Conv(x, w)", "w8a8-static", False),
        (WIDE, [8, 16, 1, 1], "a = Conv(x, w) y = Tanh(a)", "w8a8-static", False),
        (WIDE, [16, 1, 3, 3], "y = Conv <group = 16> (x, w)", "w8a8-static", True),
        (WIDE, [16, 1, 3, 3], "a = Conv <group = 16> (x, w) y = Tanh(a)", "w8a8-static", True),
        (WIDE.replace("16", "48"), [48, 1, 3, 3], "a = Conv <group = 48> (x, w) y = Tanh(a)", "w8a8-static", False),
        (TOKENS, [16, 48], "y = MatMul(x, w)", "w8a8-dynamic", True),
        (TOKENS, [16, 48], "y = MatMul(x, w)", "w8a8-static", False),
        (TOKENS.replace("16", "64"), [64, 32], "y = MatMul(x, w)", "w8a8-dynamic", True),
        (TOKENS.replace("16", "64"), [64, 48], "y = MatMul(x, w)", "w8a8-dynamic", False),
        (TOKENS.replace("16", "400"), [400, 32], "y = MatMul(x, w)", "w8a8-dynamic", False),
    ],
)
def test_the_table_names_what_was_measured_to_be_slower(given, weight, body, recipe, slow):
    numbers = ", ".join(f"{number:.4f}" for number in np.random.default_rng(0).normal(0, 0.3, int(np.prod(weight))))
    text = f"layer ({given}) => (float[?, ?, ?, ?] y) <float{weight} w = {{{numbers}}}> {{ [layer] {body} }}"
    if "Conv" not in body:
        text = text.replace("float[?, ?, ?, ?]", "float[?, ?, ?]")
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]> {text}')
    plan = qcompile.Recipe.from_name(recipe)
    work = Work.of(model, None, None, None, False, False, None)
    assert ("layer" in tuning.choose(work, plan, backends.get("onnxruntime"), None, "table").kept) is slow
