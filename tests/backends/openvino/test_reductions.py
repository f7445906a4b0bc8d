from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends import openvino as room
from qcompile.backends.openvino.reductions import keep_reductions_apart
from tests.backends.openvino.graphs import converted, operators, run_lowered
from tests.backends.portable import parse, reference, weight

PAIR = "q = QuantizeLinear({}, s, z) d = DequantizeLinear(q, s, z) "
LINEAR = "w_ = DequantizeLinear(w, ws, wz) y = MatMul(d, w_)"
AXES = "i = Constant<value = int64[1] {1}>() "


def quantized_reduction(reduction: str, then: str = "") -> ir.Model:
    text = AXES + f"m = {reduction}(x, i) " + then + PAIR.format("t" if then else "m") + LINEAR
    parts = weight(np.random.default_rng(0), (48, 3), 1)
    scale = {"s": np.float32(0.02), "z": np.uint8(100), "half": np.float32(0.5)}
    scale["factors"] = np.linspace(0.5, 2, 48, dtype=np.float32)
    return parse(f"(float[N,S,48] x) => (float[?] y) {{ {text} }}", **scale, **parts)


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(2, 7, 48)).astype(np.float32)}


@pytest.mark.parametrize("then", ["", "r = Relu(m) t = Mul(r, half) ", "r = Mul(m, factors) t = Add(r, factors) "])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2"])
def test_an_artifact_has_the_reduction_in_steps_of_the_quantizer(
    kind: str, keepdims: int, then: str, tmp_path: Path
) -> None:
    model = quantized_reduction(f"{kind}<keepdims = {keepdims}>", then)
    found = run_lowered(model, feed(), tmp_path)["y"]
    np.testing.assert_allclose(found, reference(model, feed())["y"], rtol=1e-5, atol=1e-5)


def test_the_whole_of_a_channel_is_a_maximum_too(tmp_path: Path) -> None:
    parts = weight(np.random.default_rng(0), (4, 3, 1, 1), 0)
    text = PAIR.format("m") + "w_ = DequantizeLinear<axis = 0>(w, ws, wz) y = Conv(d, w_)"
    model = parse(
        f"(float[N,3,H,W] x) => (float[?] y) {{ m = GlobalMaxPool(x) {text} }}",
        s=np.float32(0.02),
        z=np.uint8(100),
        **parts,
    )
    lowered = room.BACKEND.lower(model, tmp_path, target=None)
    x = np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)
    session = room.BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1)
    pooled = parse("(float[N,3,H,W] x, int64[2] i) => (float[?] m) { m = ReduceMax(x, i) }")
    rest = parse(f"(float[N,3,1,1] m) => (float[?] y) {{ {text} }}", s=np.float32(0.02), z=np.uint8(100), **parts)
    expected = reference(rest, reference(pooled, {"x": x, "i": np.array([2, 3])}))["y"]
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (PAIR.format("m") + LINEAR, 1),
        # It is read twice, and so it is not fused; a sum of two activations is not either.
        (PAIR.format("m") + "w_ = DequantizeLinear(w, ws, wz) p = MatMul(d, w_) n = ReduceSum(m) y = Add(p, n)", 0),
        ("v = ReduceMean(x, i) t = Add(m, v) " + PAIR.format("t") + LINEAR, 0),
        ("y = Relu(m)", 0),
    ],
)
def test_only_what_is_fused_is_kept_apart(text: str, count: int) -> None:
    parts = weight(np.random.default_rng(0), (48, 3), 1)
    scale = {"s": np.float32(0.02), "z": np.uint8(100)}
    model = converted(
        parse(f"(float[N,S,48] x) => (float[?] y) {{ {AXES} m = ReduceMax(x, i) {text} }}", **scale, **parts)
    )
    assert operators(model)["Maximum"] == count
    keep_reductions_apart(model)
    assert operators(model)["Maximum"] == count
