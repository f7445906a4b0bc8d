from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.backends.onnxruntime.last_positions import keep_last_positions
from tests.backends.onnxruntime.rewrites import operators, run
from tests.backends.portable import parse

TEXT = """(float[B,S,8] x, int64[B,T] padding) => (float[B,S,5] logits)
{
    mixed = CumSum (x2, axis)
    o = MatMul (mixed, w_o)
    h = Add (x2, o)
    n = RMSNormalization <axis = -1> (h, g)
    both = MatMul (n, w_up)
    gate, up = Split <axis = -1, num_outputs = 2> (both)
    act = Sigmoid (gate)
    m = Mul (act, up)
    d = MatMul (m, w_down)
    r = Add (h, d)
    logits = MatMul (r, w)
}""".replace("mixed =", "x2 = Neg (x)\n mixed =")
GENERATOR = np.random.default_rng(0)
SHAPES = {"w_o": (8, 8), "g": (8,), "w_up": (8, 12), "w_down": (6, 8), "w": (8, 5)}
WEIGHTS = {name: GENERATOR.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
MOVED = {"MatMul": 4, "Add": 2, "RMSNormalization": 1, "Split": 1, "Sigmoid": 1, "Mul": 1}
INDEX = {"Shape": 1, "Neg": 2, "Slice": 1, "ArgMax": 1, "Unsqueeze": 1}


def last(text: str, selected: int) -> ir.Model:
    """The model with logits of the last tokens; asserts from how many values they come, and what it computes."""
    before = parse(text, axis=np.array(1), **WEIGHTS)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(before)
    after = before.clone()
    assert keep_last_positions(after, after.graph.outputs[0], after.graph.inputs[1])
    assert operators(after)["GatherND"] == selected
    assert str(after.graph.outputs[0].shape) == "[B,1,5]"
    x = GENERATOR.standard_normal((3, 4, 8)).astype(np.float32)
    # Padding on the right, padding on the left, and none; two keys are in a cache.
    padding = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    feed = {"x": x, "padding": padding}
    expected = run(before, feed)["logits"][np.arange(3), [1, 3, 3]]
    np.testing.assert_allclose(run(after, feed)["logits"][:, 0], expected, rtol=1e-6)
    one = {"x": x[:, :1], "padding": np.ones((3, 3), np.int64)}
    np.testing.assert_allclose(run(after, one)["logits"], run(before, one)["logits"], rtol=1e-6)
    return after


def test_everything_behind_what_mixes_positions_is_computed_once() -> None:
    after = last(TEXT, 2)
    assert operators(after) == {**MOVED, **INDEX, "CumSum": 1, "GatherND": 2}
    assert [str(value.shape) for node in after.graph for value in node.outputs if node.op_type == "Split"] == [
        "[B,1,6]",
        "[B,1,6]",
    ]


def test_what_is_read_elsewhere_is_computed_for_all() -> None:
    outputs = TEXT.replace("=> (float[B,S,5] logits", "=> (float[B,S,5] logits, float[B,S,8] seen")
    after = last(outputs.replace("n = RMS", "seen = CumSum (h, axis)\n n = RMS"), 1)
    (h,) = (value for node in after.graph for value in node.outputs if value.name == "h")
    assert str(h.shape) == "[B,S,8]"


@pytest.mark.parametrize(
    "change",
    [("MatMul (m, w_down)", "MatMul (m, w_d)"), ("m = Mul (act, up)", "m0 = Mul (act, up)\n m = Clip (m0)")],
    ids=["weight that is computed", "operator that nobody looked at"],
)
def test_what_may_mix_positions_stays(change: tuple[str, str]) -> None:
    text = "least = ReduceMin <keepdims = 0> (x)\n w_d = Add (w_down, least)\n x2 = Neg"
    after = last(TEXT.replace(*change).replace("x2 = Neg", text), 2)
    (h,) = (value for node in after.graph for value in node.outputs if value.name == "h")
    assert str(h.shape) == "[B,S,8]"


def test_weights_that_are_computed_when_the_model_is_loaded() -> None:
    after = last(
        TEXT.replace("MatMul (n, w_up)", "MatMul (n, w_u)").replace("x2 = Neg", "w_u = Abs (w_up)\n x2 = Neg"), 2
    )
    (h,) = (value for node in after.graph for value in node.outputs if value.name == "h")
    assert str(h.shape) == "[B,1,8]"


def test_an_input_of_the_graph_is_selected_from() -> None:
    assert operators(last(TEXT.replace("Add (x2, o)", "Add (x, o)"), 2))["ArgMax"] == 1


def test_logits_that_are_mixed_stay() -> None:
    model = parse("(float[B,S,8] x, int64[B,T] padding) => (float[B,S,8] logits) { logits = CumSum (x, axis) }",
                  axis=np.array(1))  # fmt: skip
    assert not keep_last_positions(model, model.graph.outputs[0], model.graph.inputs[1])
    assert operators(model) == {"CumSum": 1}


def test_a_known_sequence_stays() -> None:
    model = parse("(float[B,3,8] x, int64[B,T] padding) => (float[B,3,5] logits) { logits = MatMul (x, w) }",
                  w=WEIGHTS["w"])  # fmt: skip
    assert not keep_last_positions(model, model.graph.outputs[0], model.graph.inputs[1])
