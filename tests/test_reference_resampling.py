"""Resize, Pad and GatherElements of the reference against ONNX Runtime, over their attributes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcompile import backends
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

X = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
SCALES = {"s": np.array([1, 1, 2, 1.5], np.float32)}
SIZES = {"n": np.array([2, 3, 7, 3])}


def check(call: str, **initializers: np.ndarray) -> None:
    model = parse(f"(float[2,3,5,6] x) => (float[?] y) {{ y = {call} }}".replace("'", '"'), **initializers)
    expected = backends.get("onnxruntime").open_session(model).run({"x": X})["y"]
    found = evaluate(model, {"x": X})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
def test_interpolation(transformation: str) -> None:
    mode = f"coordinate_transformation_mode = '{transformation}'"
    check(f"Resize<mode = 'linear', {mode}>(x, , s)", **SCALES)
    check(f"Resize<mode = 'linear', {mode}>(x, , , n)", **SIZES)
    check(f"Resize<mode = 'linear', {mode}>(x, , , n)", n=np.array([2, 3, 1, 1]))


def test_the_nearest_pixel() -> None:
    transformations = ["half_pixel", "asymmetric", "align_corners"]
    roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    for transformation, rounding in itertools.product(transformations, roundings):
        attributes = f"coordinate_transformation_mode = '{transformation}', nearest_mode = '{rounding}'"
        check(f"Resize<{attributes}>(x, , s)", **SCALES)
        check(f"Resize<mode = 'nearest', {attributes}>(x, , , n)", **SIZES)


def test_some_axes_are_resized() -> None:
    check("Resize<mode = 'linear', axes = [2, 3]>(x, , s)", s=np.array([0.7, 3], np.float32))


@pytest.mark.parametrize(
    ("attributes", "pads"),
    [
        ("", [0, 1, 2, 0, 1, 0, 0, 3]),
        ("", [0, 1, -2, 0, 1, 0, 1, -3]),
        ("mode = 'reflect'", [0, 0, 2, 1, 0, 0, 3, 5]),
        ("mode = 'edge'", [0, 0, 2, 1, 0, 0, 3, 9]),
        ("mode = 'wrap'", [0, 0, 2, 1, 0, 0, 3, 4]),
    ],
)
def test_pads(attributes: str, pads: list[int]) -> None:
    check(f"Pad<{attributes}>(x, p)" if attributes else "Pad(x, p)", p=np.array(pads))


def test_pads_of_some_axes_with_a_value() -> None:
    check("Pad(x, p, v, a)", p=np.array([1, 2, 3, -1]), v=np.float32(7), a=np.array([-1, 0]))


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_elements_at_places_of_another_shape(axis: int) -> None:
    indices = np.random.default_rng(1).integers(-2, 2, (2, 1, 4, 3))
    check(f"GatherElements<axis = {axis}>(x, i)", i=indices)
