"""A model that draws random numbers is named as the cause of what differs, with the operator; not a pass."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.errors import ModelError

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x) => (float[n, 64] y)'
SAMPLES = [{"x": np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)}]


def _compile(body: str) -> None:
    weight = ir.tensor(np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32), name="w")
    model = ir.from_onnx_text(f"{HEADER} <float[64, 64] w> {{ {body} }}", initializers=[weight])
    qcompile.compile(model, "w8a8-static", calibration=SAMPLES, tune="none")


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("h = MatMul(x, w) n = RandomNormalLike(h) y = Add(h, n)", "RandomNormalLike"),
        (
            "h = MatMul(x, w) r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() y = Dropout(h, r, t)",
            "Dropout",
        ),
    ],
)
def test_a_model_whose_outputs_are_random_is_named_and_no_pass(body: str, operator: str) -> None:
    with pytest.raises(ModelError, match=rf"^output y: differs by .* between two runs .*{operator} of .*draws random"):
        _compile(body)
