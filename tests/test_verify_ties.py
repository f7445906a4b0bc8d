from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.block_functions import round_in_blocks
from qcompile.errors import VerificationError
from qcompile.reference_operators import whole_token
from qcompile.verify_artifact import verify_artifact
from qcompile.verify_observed import observed_values
from qcompile.verify_ties import moved_by_ties, towards

TEXT = """
<ir_version: 10, opset_import: ["" : 21]> g (float[1, 4] x) => (float[1, 2] y)
<float[4, 2] w = {100, 0, 0, 1, 0, 0, 0, 0}> { y = MatMul(x, w) }
"""


def _model(text: str = TEXT) -> ir.Model:
    model = ir.from_onnx_text(text)
    product = model.graph.node(0)
    product.replace_input_with(0, round_in_blocks(model, model.graph.inputs[0], 4, product))
    return model


def test_a_tie_moves_what_is_computed_from_it_alone() -> None:
    # In steps of 1 (127 is the largest): 2.5 may become 2 or 3, 7.25 is 7.
    moved = moved_by_ties(_model(), {"x": np.array([[2.5, 7.25, 0, 127]], np.float32)}, {}, whole_token)
    np.testing.assert_allclose(moved["y"], [[100, 0]], atol=1e-4)


def test_what_no_tie_explains_stays_apart() -> None:
    expected, moved = np.array([1.0, 1.0, 1.0]), np.array([0.5, 0.5, 0.0])
    np.testing.assert_array_equal(towards(expected, np.array([1.4, 0.2, 3.0]), moved), [1.0, 0.7, 3.0])


# A step of y is 1, and in steps of 1 the first number is 2.5: where it becomes 3, the first output is 3 steps away.
THREE_STEPS = """
<ir_version: 10, opset_import: ["" : 21]> g (float[1, 4] x) => (float[1, 2] y)
<float[4, 2] w = {3, 0, 0, 0, 0, 0, 0, 2}, float[2] b = {0, 1}> { m = MatMul(x, w) y = Add(m, b) }
"""
SAMPLE = {"x": np.array([[2.5, 0, 0, 127]], np.float32)}


@pytest.mark.parametrize(
    ("changed", "array", "explained"),
    [("x", [2.0**-20, 0, 0, 0], True), ("b", [0, 4], False), ("b", [3, 1], True), ("b", [4, 1], False)],
    ids=[
        "the tie is answered otherwise",
        "no tie there",
        "as far as the tie moves it",
        "further than the tie moves it",
    ],
)
def test_an_output_is_as_far_away_as_ties_move_it_or_wrong(
    changed: str, array: list[float], explained: bool, tmp_path: Path
) -> None:
    right, engine = _model(THREE_STEPS), backends.get("onnxruntime")
    wrong = right.clone()
    value = ir.val("changed", const_value=ir.tensor(np.array(array, np.float32), name="changed"))
    wrong.graph.register_initializer(value)
    if changed == "b":
        wrong.graph.node(-1).replace_input_with(1, value)
    else:
        moved = ir.node("Add", [wrong.graph.inputs[0], value])
        wrong.graph.node(0).replace_input_with(0, moved.outputs[0])
        moved.outputs[0].name = "moved"
        wrong.graph.insert_before(wrong.graph.node(0), moved)
    paths = {}
    for name, model in (("right", right), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        paths[name] = tmp_path / name / engine.lower(model, tmp_path / name, target=None).model_file

    def verify() -> float:
        probes = engine.probes(paths["wrong"], observed_values(right))
        original = ir.from_onnx_text(THREE_STEPS)
        found = verify_artifact(right, original, lambda: engine.open_artifact(paths["right"]), probes, SAMPLE)
        return max(each.max_steps for each in found)

    if explained:
        assert verify() < 1
    else:
        with pytest.raises(VerificationError, match=r"y is up to [13] quantization steps"):
            verify()
