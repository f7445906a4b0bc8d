"""NonMaxSuppression of the reference against ONNX Runtime's: the same boxes in the same order."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

BOXES, CLASSES = 200, 3
THRESHOLDS = {
    "most": np.array([20]),
    "no": np.array([0]),
    "half": np.array([0.5], np.float32),
    "third": np.float32(0.3),
}


@pytest.mark.parametrize("inputs", ["most, half, third", "most, half", "most, , third", "most", "no, half", ", half"])
@pytest.mark.parametrize("middle", [0, 1])
@pytest.mark.parametrize("digits", [7, 1], ids=["scores", "equal scores"])
def test_the_same_boxes_are_selected_in_the_same_order(inputs: str, middle: int, digits: int) -> None:
    model = parse(
        f"(float[2,{BOXES},4] b, float[2,{CLASSES},{BOXES}] s) => (int64[k,3] y) "
        f"{{ y = NonMaxSuppression<center_point_box = {middle}>(b, s, {inputs}) }}",
        **{name: array for name, array in THRESHOLDS.items() if name in inputs},
    )
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (2, BOXES, 2)), random.uniform(-0.1, 0.4, (2, BOXES, 2))
    boxes = np.concatenate([corners[0], corners[1] if middle else corners[0] + corners[1]], axis=-1)
    scores = np.round(random.uniform(size=(2, CLASSES, BOXES)), digits)
    feed = {"b": np.abs(boxes).astype(np.float32), "s": scores.astype(np.float32)}
    expected = BACKEND.open_session(model, optimization="disabled").run(feed)["y"]
    assert (len(expected) == 0) == (not inputs.startswith("most"))
    np.testing.assert_array_equal(evaluate(model, feed)["y"], expected)
