from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.backends.onnxruntime import BACKEND, MODEL_FILE
from tests.backends.portable import parse

QUANTIZED = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
WRITTEN = "o = QuantizeLinear (r, t, z) y = DequantizeLinear (o, t, z)"


def case(layer: str, x: str, y: str, weight: np.ndarray) -> ir.Model:
    """A float layer between integers, whose output channels differ by a factor of thousand."""
    text = f"({x} x) => ({y} y) {{ {QUANTIZED} {layer} {WRITTEN} }}"
    return parse(
        text,
        s=np.float32(0.03),
        z=np.uint8(128),
        t=np.float32(0.03),
        w=weight,
        b=np.linspace(-1, 1, 4, dtype=np.float32),
    )


def kernel(*shape: int) -> np.ndarray:
    """Weights of four output channels, each a tenth of the one before."""
    sizes = 10.0 ** -np.arange(4)
    return (np.random.default_rng(0).normal(size=shape) * sizes.reshape(4, *(1 for _ in shape[1:]))).astype(np.float32)


CASES = {
    "Conv": case("c = Conv (d, w, b) r = Relu (c)", "float[2,3,6,6]", "float[2,4,4,4]", kernel(4, 3, 3, 3)),
    "depthwise": case("r = Conv <group = 4> (d, w)", "float[2,4,6,6]", "float[2,4,4,4]", kernel(4, 1, 3, 3)),
    "two of one value": case(
        "c = Conv <group = 4> (d, w) e = Conv <group = 4> (d, w, b) r = Add (c, e)",
        "float[2,4,6,6]", "float[2,4,4,4]", kernel(4, 1, 3, 3),
    ),
    "ConvTranspose": case("r = ConvTranspose (d, w, b)", "float[2,4,3,3]", "float[2,4,5,5]", kernel(4, 4, 3, 3)),
    "Gemm": case("r = Gemm <transB = 1> (d, w, b)", "float[5,6]", "float[5,4]", kernel(4, 6)),
    "MatMul": case("c = MatMul (d, w) r = Add (c, b)", "float[5,6]", "float[5,4]", kernel(4, 6).T.copy()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lowered", [True, False], ids=["artifact", "session"])
def test_float_layer_between_integers_stays_float(name: str, lowered: bool, tmp_path: Path) -> None:
    model = CASES[name]
    x = np.random.default_rng(1).normal(size=[int(dim) for dim in model.graph.inputs[0].shape]).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    (expected,) = plain.run(None, {"x": x})
    if lowered:
        BACKEND.lower(model, tmp_path, target=None)
        (actual,) = onnxruntime.InferenceSession(tmp_path / MODEL_FILE).run(None, {"x": x})
    else:
        actual = BACKEND.open_session(model).run({"x": x})["y"]
    np.testing.assert_allclose(actual, expected, atol=0.031)  # one step: sums in another order may round to the next
    assert np.mean(np.abs(actual - expected)) < 1e-3
