"""A channel whose weights are next to nothing and whose bias is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.backends.onnxruntime import BACKEND, MODEL_FILE
from qcompile.backends.onnxruntime.biases import fit_biases
from tests.backends.portable import parse, reference

TEXT = """(float[1,3,5,5] x) => (float[1,4,5,5] y) {
    q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
    v = DequantizeLinear <axis = 0> (w, ws, wz)
    c = Conv <pads = [1, 1, 1, 1]> (d, v, b)
    o = QuantizeLinear (c, t, z) y = DequantizeLinear (o, t, z)
}"""
X = np.random.default_rng(1).normal(size=(1, 3, 5, 5)).astype(np.float32)


def case(scale: np.ndarray) -> ir.Model:
    return parse(
        TEXT,
        s=np.float32(0.03),
        z=np.uint8(128),
        t=np.float32(0.03),
        w=np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        ws=scale.astype(np.float32),
        wz=np.zeros(scale.shape, np.int8),
        b=np.array([1.5, -2.5, 0.5, 2.0], np.float32),
    )


@pytest.mark.parametrize("scale", [np.array([1e-3, 1e-9, 1e-38, 1e-3]), np.array(1e-9)], ids=["channels", "tensor"])
@pytest.mark.parametrize("lowered", [True, False], ids=["artifact", "session"])
def test_bias_does_not_clip(scale: np.ndarray, lowered: bool, tmp_path: Path) -> None:
    model = case(scale)
    expected = reference(model, {"x": X})["y"]
    if lowered:
        BACKEND.lower(model, tmp_path, target=None)
        (actual,) = onnxruntime.InferenceSession(tmp_path / MODEL_FILE).run(None, {"x": X})
    else:
        actual = BACKEND.open_session(model).run({"x": X})["y"]
    np.testing.assert_allclose(actual, expected, atol=0.031)
    assert np.mean(np.abs(actual - expected)) < 3e-3


def test_biases_that_fit_leave_the_weight_alone() -> None:
    model = case(np.full(4, 1e-3))
    fit_biases(model)
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 3
    model = case(np.array([1e-3, 1e-9, 1e-3, 1e-3]))
    for _ in range(2):
        fit_biases(model)
        assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 4  # the old one is read by nobody


def test_convolutions_that_share_a_weight_get_weights_of_their_own() -> None:
    shared = TEXT.replace("o = Quant", "e = Conv <pads = [1, 1, 1, 1]> (d, v, b2) f = Add (c, e) o = Quant")
    shared = shared.replace("QuantizeLinear (c, t, z)", "QuantizeLinear (f, t, z)")
    one = case(np.array([1e-3, 1e-9, 1e-3, 1e-3]))
    arrays = {name: value.const_value.numpy() for name, value in one.graph.initializers.items() if value.const_value}
    model = parse(shared, **arrays, b2=np.array([0.5, 1.5, 0.5, 0.5], np.float32))
    expected = reference(model, {"x": X})["y"]
    np.testing.assert_allclose(BACKEND.open_session(model).run({"x": X})["y"], expected, atol=0.031)
