"""The value at which two models part."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import first_difference as module
from qcompile.backends import get
from qcompile.calibration_masks import PaddingMask
from qcompile.first_difference import first_difference

FEED = {"x": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "mask": np.array([[1, 1, 1, 0]] * 3)}


def parted(before: str, after: str, *masks: PaddingMask) -> str | None:
    header = '<ir_version: 10, opset_import: ["" : 23]> g (float[n, 4] x, int64[n, 4] mask) => (float[n, 4] y) '
    models = [
        ir.from_onnx_text(header + "{ two = Constant<value_float = 2.0>() " + text + " }") for text in (before, after)
    ]
    copies = [model.clone() for model in models]
    found = first_difference(*models, [FEED], masks, get("onnxruntime").open_session)
    assert [ir.to_proto(model) for model in models] == [ir.to_proto(model) for model in copies]
    return found


@pytest.mark.parametrize("values", [32, 1], ids=["in one run", "one by one"])
def test_the_first_value_in_the_order_of_the_graph(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VALUES", values)
    before = "a = Relu(x) b = Neg(a) c = Exp(b) y = Add(c, a)"
    assert parted(before, before) is None
    assert parted(before, before.replace("Neg(a)", "Neg(x)")) == "b"
    assert parted(before, before.replace("Add(c, a)", "Sub(c, a)")) == "y"
    assert parted(before, before.replace("Relu(x)", "Gelu(x)")) == "a"


def test_values_are_compared_by_name_and_new_ones_are_passed_over() -> None:
    before = "a = Relu(x) b = Neg(a) y = Exp(b)"
    assert parted(before, "a = Relu(x) new = Abs(x) b = Identity(new) y = Exp(b)") == "b"


def test_what_is_made_up_for_behind_is_not_the_place() -> None:
    before = "s = Relu(x) b = Neg(s) c = Sigmoid(b) y = Exp(c)"
    after = "r = Relu(x) s = Mul(r, two) h = Neg(s) b = Div(h, two) c = Tanh(b) y = Exp(c)"
    assert parted(before, after) == "c"


def test_values_that_branches_read_are_followed() -> None:
    branch = (
        "m = Cast<to = 9>(mask) k = ReduceMax<keepdims = 0>(mask) p = Cast<to = 9>(k) "
        "y = If(p)<then_branch = g () => (t) { t = Neg(a) }, else_branch = h () => (e) { e = Abs(a) }>"
    )
    assert parted(f"a = Relu(x) {branch}", f"a = Exp(x) {branch}") == "a"


def test_padded_positions_do_not_count() -> None:
    before = "f = Cast<to = 1>(mask) a = Mul(x, f) y = Exp(a)"
    after = "f = Cast<to = 1>(mask) a = Identity(x) y = Sigmoid(a)"
    assert parted(before, after) == "a"
    assert parted(before, after, PaddingMask("mask")) == "y"
