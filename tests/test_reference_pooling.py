"""Pooling of the reference against ONNX Runtime, over its attributes."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile import backends
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

WINDOWS = [
    "kernel_shape = [2, 3]",
    "kernel_shape = [3, 3], pads = [1, 0, 1, 2]",
    "kernel_shape = [3, 2], strides = [2, 3]",
    "kernel_shape = [2, 2], dilations = [3, 2]",
    "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
    "kernel_shape = [2, 2], strides = [3, 3], ceil_mode = 1",
    "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1",
    "kernel_shape = [3, 3], strides = [2, 2], auto_pad = 'SAME_UPPER'",
    "kernel_shape = [2, 3], strides = [3, 2], auto_pad = 'SAME_LOWER'",
    "kernel_shape = [3, 3], auto_pad = 'VALID'",
]


def check(call: str, x: np.ndarray) -> None:
    dims = ", ".join(map(str, x.shape))
    model = parse(f"(float[{dims}] x) => (float[?] y) {{ y = {call} }}".replace("'", '"'))
    expected = backends.get("onnxruntime").open_session(model).run({"x": x})["y"]
    found = evaluate(model, {"x": x})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["MaxPool<", "AveragePool<", "AveragePool<count_include_pad = 1, "])
@pytest.mark.parametrize("windows", WINDOWS)
def test_the_same_as_the_runtime(windows: str, kind: str) -> None:
    # Below zero everywhere: a pad of zeros would be the largest.
    check(f"{kind}{windows}>(x)", np.random.default_rng(0).uniform(-2, -1, (2, 3, 8, 9)).astype(np.float32))


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_one_dimension_and_three(kind: str) -> None:
    for size in ((7,), (4, 5, 6)):
        kernel, pads = [2] * len(size), [1, 0] * len(size)
        x = np.random.default_rng(0).normal(size=(1, 2, *size)).astype(np.float32)
        check(f"{kind}<kernel_shape = {kernel}, pads = {pads}>(x)", x)


def test_integers_have_no_infinity() -> None:
    model = parse("(uint8[1, 1, 4] x) => (uint8[?] y) { y = MaxPool<kernel_shape = [2], pads = [1, 1]>(x) }")
    assert evaluate(model, {"x": np.array([[[3, 1, 2, 9]]], np.uint8)})["y"].tolist() == [[[3, 3, 2, 9, 9]]]
