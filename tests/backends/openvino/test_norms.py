from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.norms import keep_epsilons
from tests.backends.openvino.graphs import converted, operators, run_as_it_is, run_lowered
from tests.backends.portable import parse, reference

PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) "
LINEAR = PAIR + "f = DequantizeLinear (w, s, z) m = MatMul (d, f) "
WRONG = {
    "quantized": PAIR.replace(" d =", " v ="),
    "product": LINEAR + "v = Relu (m)",
    "multiplied": PAIR + "v = Mul (d, h)",
    "negative": PAIR + "v = Neg (d)",
    "sum of two": PAIR + "u = Sigmoid (x) c = Mul (u, s) v = Add (c, d)",
    "divided": PAIR + "v = Div (d, h)",
    "chosen": PAIR + "v = Gather <axis = 1> (d, i)",
    "product, sliced": LINEAR + "v = Slice (m, f1, f5, f1)",
    "mean of two": PAIR + "u = Sigmoid (x) c = Mul (u, s) v = Mean (c, d)",
    "padded": PAIR + "v = Pad (d, p)",
    "turned": PAIR + "u = Transpose <perm = [0, 2, 1]> (d) o = Relu (u) v = Transpose <perm = [0, 2, 1]> (o)",
}
LEFT = {
    "float": "v = Relu (x)",
    "product with a bias, and a residual": LINEAR + "u = Add (m, b) v = Add (u, x)",
    "computed": PAIR + "v = Sigmoid (d)",
    "square": PAIR + "v = Mul (d, d)",
}
ARRAYS = {
    "s": np.float32(0.016),
    "h": np.float32(0.5),
    "z": np.int8(0),
    "i": np.arange(5),
    "f1": np.array([1]),
    "f5": np.array([5]),
    "p": np.zeros(6, np.int64),
    "g": np.linspace(0.5, 2, 8, dtype=np.float32),
    "b": np.linspace(-0.01, 0.01, 8, dtype=np.float32),
    "w": np.random.default_rng(0).integers(-2, 3, (8, 8)).astype(np.int8),
}


def model_of(text: str) -> ir.Model:
    whole = f"{text} y = LayerNormalization (v, g, b)"
    used = {
        name: array
        for name, array in ARRAYS.items()
        if any(f"{before}{name}{end}" in whole for before in " (" for end in ",)")
    }
    return parse(f"(float[n,5,8] x) => (float[n,q,8] y) {{ {whole} }}", **used)


def feed() -> dict[str, np.ndarray]:
    """Rows that hardly vary: by a few steps of the quantizer."""
    return {"x": np.random.default_rng(1).normal(size=(1, 5, 8)).astype(np.float32) * np.float32(0.02)}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_integers_and_products_are_kept_apart(text: str) -> None:
    model = converted(model_of(text))
    assert operators(model)["Maximum"] == 1
    keep_epsilons(model)
    assert operators(model)["Maximum"] == 1


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_others_are_left(text: str) -> None:
    assert operators(converted(model_of(text)))["Maximum"] == 0


@pytest.mark.parametrize("text", [*WRONG.values(), *LEFT.values()], ids=[*WRONG, *LEFT])
def test_the_epsilon_is_that_of_the_graph(text: str, tmp_path: Path) -> None:
    model = model_of(text)
    found = run_lowered(model, feed(), tmp_path)["y"]
    np.testing.assert_allclose(found, reference(model, feed())["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_otherwise_the_runtime_leaves_it_out(text: str, tmp_path: Path) -> None:
    """When this fails, OpenVINO is mended, and the rewrite is not needed for its new version."""
    model = model_of(text)
    found = run_as_it_is(model, feed(), tmp_path)["y"]
    assert np.abs(found - reference(model, feed())["y"]).max() > 5e-3
