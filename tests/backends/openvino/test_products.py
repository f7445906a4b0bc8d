from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.products import keep_products_apart
from tests.backends.openvino.graphs import converted, operators, run_as_it_is, run_lowered
from tests.backends.portable import parse, reference

INPUT = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) "
PRODUCTS = {
    "linear": INPUT + "f = DequantizeLinear (w, ws, wz) {} = MatMul (d, f) ",
    "float linear": "f = DequantizeLinear (w, ws, wz) {} = MatMul (x, f) ",
    "convolution": INPUT + "f = DequantizeLinear (k, ws, wz) {} = Conv (d, f) ",
    "two activations": INPUT + "e = Transpose <perm = [0, 2, 1]> (d) {} = MatMul (d, e) ",
}
QUANTIZED = "g = QuantizeLinear (a, t, z) h = DequantizeLinear (g, t, z) y = Abs (h)"
WRONG = {
    "linear, shifted": PRODUCTS["linear"].format("m") + "a = Add (m, b) " + QUANTIZED,
    "linear, less a vector": PRODUCTS["linear"].format("m") + "a = Sub (m, b) " + QUANTIZED,
    "float linear, multiplied": PRODUCTS["float linear"].format("m") + "a = Mul (m, b) " + QUANTIZED,
    "float linear with a bias, divided": PRODUCTS["float linear"].format("p")
    + "m = Add (p, b) a = Div (m, b) "
    + QUANTIZED,
    "convolution, multiplied, not quantized": PRODUCTS["convolution"].format("m") + "a = Mul (m, c) y = Abs (a)",
    "convolution, clipped, multiplied": PRODUCTS["convolution"].format("p")
    + "m = Relu (p) a = Mul (m, c) "
    + QUANTIZED,
    "convolution, multiplied, by a number": PRODUCTS["convolution"].format("p")
    + "m = Mul (p, n) a = Mul (m, n) "
    + QUANTIZED,
    "convolution, reshaped to what it was, multiplied by a number": PRODUCTS["convolution"].format("p")
    + "m = Reshape (p, i) a = Mul (m, n) "
    + QUANTIZED,
    "float linear, unsqueezed and squeezed, shifted": PRODUCTS["float linear"].format("p")
    + "u = Unsqueeze (p, j) m = Squeeze (u, j) a = Add (m, b) "
    + QUANTIZED,
    "linear, activated and multiplied": PRODUCTS["linear"].format("m")
    + "r = LeakyRelu (m) a = Mul (r, b) "
    + QUANTIZED,
    "convolution, clipped and shifted": PRODUCTS["convolution"].format("m")
    + "l = Clip (m, o, n) a = Add (l, c) "
    + QUANTIZED,
    "convolution, transposed and shifted": PRODUCTS["convolution"].format("m")
    + "r = Transpose <perm = [0, 2, 1]> (m) a = Add (r, c) y = Abs (a)",
    "convolution, and a residual": PRODUCTS["convolution"].format("m") + "a = Add (m, x) y = Abs (a)",
    "two activations, negative": PRODUCTS["two activations"].format("p") + "m = Neg (p) a = Add (m, b) y = Abs (a)",
}
LEFT = {
    "one reader": PRODUCTS["linear"].format("p") + "n = Add (p, b) a = Mul (n, b) " + QUANTIZED + " m = Identity (y)",
    "a number": PRODUCTS["linear"].format("p") + "m = Add (p, b) a = Mul (m, t) " + QUANTIZED,
    "read twice as it is": PRODUCTS["linear"].format("p") + "m = Add (p, b) a = Abs (m) " + QUANTIZED,
    "no product": INPUT + "m = Relu (d) a = Add (m, b) " + QUANTIZED,
    "activated": PRODUCTS["linear"].format("m") + "r = Sigmoid (m) a = Mul (m, r) y = Abs (a)",
    "moved": PRODUCTS["linear"].format("p") + "m = Transpose <perm = [1, 0, 2]> (p) a = Add (m, b) " + QUANTIZED,
}
RANDOM = np.random.default_rng(0)
ARRAYS = {
    "s": np.float32(0.03),
    "t": np.float32(0.05),
    "n": np.float32(0.7),
    "o": np.float32(-0.7),
    "z": np.int8(0),
    "i": np.array([0, 6, 6]),
    "j": np.array([1]),
    "w": RANDOM.integers(-127, 128, (6, 6)).astype(np.int8),
    "k": RANDOM.integers(-127, 128, (6, 6, 1)).astype(np.int8),
    "ws": np.float32(0.004),
    "wz": np.int8(0),
    "b": np.array([1, -1.5, 2, 1.2, -1.8, 1.4], np.float32),
    "c": np.array([[1], [-1.5], [2], [1.2], [-1.8], [1.4]], np.float32),
}


def model_of(text: str) -> ir.Model:
    used = {name: array for name, array in ARRAYS.items() if f" {name})" in text or f" {name}," in text}
    arrays = {**used, "w": ARRAYS["w"], "k": ARRAYS["k"]}
    return parse(
        f"(float[n,6,6] x) => (float[?,6,6] m, float[?,6,6] y) {{ {text} }}",
        **{name: array for name, array in arrays.items() if f"({name}," in text or name in used},
    )


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(1, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_merged_reads_the_product_apart(text: str) -> None:
    model = converted(model_of(text))
    count = 1 + text.count("Clip")  # which is a Maximum itself
    assert operators(model)["Maximum"] == count
    keep_products_apart(model)
    assert operators(model)["Maximum"] == count


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_others_are_left(text: str) -> None:
    assert operators(converted(model_of(text)))["Maximum"] == 0


@pytest.mark.parametrize("text", [*WRONG.values(), *LEFT.values()], ids=[*WRONG, *LEFT])
def test_every_output_is_what_the_graph_says(text: str, tmp_path: Path) -> None:
    model = model_of(text)
    found = run_lowered(model, feed(), tmp_path)
    for name, array in reference(model, feed()).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_otherwise_the_runtime_merges_it_for_all(text: str, tmp_path: Path) -> None:
    """When this fails, OpenVINO is mended, and the rewrite is not needed for its new version."""
    model = model_of(text)
    found = run_as_it_is(model, feed(), tmp_path)
    expected = reference(model, feed())
    assert max(np.abs(found[name] - expected[name]).max() for name in "my") > 0.1
