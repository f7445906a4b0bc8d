"""Convolutions of the reference against ONNX Runtime, over their attributes, whole and in blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile import backends, reference_convolutions
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

CONVOLUTIONS = [
    "Conv(x, w, b)",
    "Conv<pads = [2, 0, 1, 3]>(x, w)",
    "Conv<strides = [2, 3], dilations = [2, 1]>(x, w, b)",
    "Conv<auto_pad = 'SAME_UPPER', strides = [2, 2]>(x, w, b)",
    "Conv<auto_pad = 'SAME_LOWER', strides = [3, 2]>(x, w)",
    "Conv<auto_pad = 'VALID'>(x, w)",
    "Conv<group = 2, kernel_shape = [3, 2]>(x, g, b)",
    "Conv<group = 4>(x, d, b)",
]
TRANSPOSED = [
    "ConvTranspose(x, t, c)",
    "ConvTranspose<pads = [1, 0, 2, 1]>(x, t)",
    "ConvTranspose<strides = [2, 3], dilations = [2, 1], output_padding = [1, 0]>(x, t, c)",
    "ConvTranspose<auto_pad = 'SAME_UPPER', strides = [2, 2]>(x, t)",
    "ConvTranspose<auto_pad = 'SAME_LOWER', strides = [2, 2]>(x, t)",
    "ConvTranspose<output_shape = [16, 17], strides = [2, 2]>(x, t)",
    "ConvTranspose<output_shape = [17, 19], strides = [2, 2]>(x, t, c)",
    "ConvTranspose<auto_pad = 'SAME_UPPER', strides = [4, 3]>(x, t)",
    "ConvTranspose<group = 4, strides = [1, 2]>(x, t, e)",
]


@pytest.mark.parametrize("elements", [2**21, 1], ids=["whole", "row by row"])
@pytest.mark.parametrize("call", [*CONVOLUTIONS, *TRANSPOSED])
def test_the_same_as_the_runtime(call: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_convolutions, "_ELEMENTS", elements)
    rng = np.random.default_rng(0)
    shapes = {
        "w": (6, 4, 3, 2),
        "g": (6, 2, 3, 2),
        "d": (6, 1, 3, 2),
        "t": (4, 3, 3, 2),
        "b": (6,),
        "c": (3,),
        "e": (12,),
    }
    if "group = 4>(x, d" in call:
        shapes["d"], shapes["b"] = (8, 1, 3, 2), (8,)
    read = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if f" {name}" in call}
    model = parse(f"(float[n, 4, 8, 9] x) => (float[?] y) {{ y = {call.replace(chr(39), chr(34))} }}", **read)
    feed = {"x": rng.normal(size=(2, 4, 8, 9)).astype(np.float32)}
    expected = backends.get("onnxruntime").open_session(model).run(feed)["y"]
    found = evaluate(model, feed)["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_dimension_and_three() -> None:
    rng = np.random.default_rng(0)
    for rank in (1, 3):
        size = (5, 6, 7)[:rank]
        dims = ", ".join(map(str, size))
        weight = rng.normal(size=(3, 2, *(2,) * rank)).astype(np.float32)
        model = parse(f"(float[1, 2, {dims}] x) => (float[?] y) {{ y = Conv(x, w) }}", w=weight)
        feed = {"x": rng.normal(size=(1, 2, *size)).astype(np.float32)}
        expected = backends.get("onnxruntime").open_session(model).run(feed)["y"]
        np.testing.assert_allclose(evaluate(model, feed)["y"], expected, rtol=1e-4, atol=1e-5)
