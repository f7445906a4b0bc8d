"""Groups: what a layer reads and writes, and the shapes of one run."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.layers import float_layers
from qcompile.scheme import ASYMMETRIC_UINT8, Scheme
from qcompile.tuning_groups import groups_of, run_for_shapes

PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
WEIGHT = ", ".join(["0.5"] * 16)


def grouped(body, activations=ASYMMETRIC_UINT8, outputs="float[N, 4, H, W] y"):
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        main (float[N, 4, H, W] x) => ({outputs})
        <float[4, 4, 1, 1] k = {{{WEIGHT}}}, float[4, 4] w = {{{WEIGHT}}}, float[4] b = {{1, 2, 3, 4}}> {{ {body} }}"""
    )
    shapes = dict.fromkeys(["x", "a", "b1", "c"], (1, 4, 2, 2))
    return [group for _, group in groups_of(float_layers(model), activations, shapes)]


@pytest.mark.parametrize(
    ("body", "states"),
    [
        ("[one] y = Conv(x, k)", [("float", "float")]),
        ("[one] a = Conv(x, k) [two] y = Conv(a, k)", [("float", "integers"), ("integers", "float")]),
        ("[one] a = Conv(x, k) c = Tanh(a) [two] y = Conv(c, k)", [("float", "rounded"), ("float", "float")]),
        ("[one] a = Conv(x, k) [two] c = Conv(x, k) y = Add(a, c)", [("shared", "rounded")] * 2),
        ("[one] a = MatMul(x, w) [two] y = MatMul(a, w)", [("float", "float")] * 2),
    ],
    ids=["alone", "in a row", "with a function between them", "of one value", "linears"],
)
def test_where_integers_flow(body, states):
    assert [(group.reads, group.writes) for group in grouped(body)] == states


def test_under_dynamic_activations_no_integers_flow_between_layers():
    body = "[one] a = MatMul(x, w) [two] c = MatMul(x, w) y = Add(a, c)"
    assert {(group.reads, group.writes) for group in grouped(body, PER_TOKEN)} == {("float", "float")}


def test_layers_of_one_kind_have_equal_groups_and_others_have_not():
    first, second = grouped("[one] a = Conv(x, k) [two] c = Conv(x, k) y = Add(a, c)")
    third, fourth = grouped("[one] a = Conv <strides = [2, 2]> (x, k) [two] c = Conv(x, k, b) y = Add(a, c)")
    assert first == second
    assert len({first, third, fourth}) == 3
    assert third.attributes == (("strides", (2, 2)),)
    assert fourth.bias


def test_the_activation_behind_a_convolution_belongs_to_it():
    first, _ = grouped("[one] a = Conv(x, k) c = Relu(a) [two] y = Conv(c, k)")
    assert (first.activation, first.writes) == (("Relu",), "integers")


def test_a_model_of_fixed_shapes_is_computed_all_the_same():
    """ONNX Runtime folds the Shape of what has one, and what nothing else reads is not run."""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        main (float[2, 3, 4] x) => (float[2, 3, 4] y)
        <float[4, 4] w = {{{WEIGHT}}}> {{ a = Relu(x) y = MatMul(a, w) }}"""
    )
    found = []

    def open_session(seen):
        session = get("onnxruntime").open_session(seen)

        class Watched:
            def run(self, feed):
                found.append(session.run(feed))
                return found[-1]

        return Watched()

    run = run_for_shapes(model, {"a"}, {"x": np.ones((2, 3, 4), np.float32)}, open_session)
    assert run.shapes == {"a": (2, 3, 4)}
    assert all(np.array_equal(outputs["y"], np.full((2, 3, 4), 2.0)) for outputs in found)


def test_shapes_are_those_of_a_run():
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        main (float[N, S, 4] x) => (float[N, S, 4] y)
        <float[4, 4] w = {{{WEIGHT}}}> {{ a = Relu(x) y = MatMul(a, w) }}"""
    )
    run = run_for_shapes(model, {"x", "a"}, {"x": np.zeros((2, 3, 4), np.float32)}, get("onnxruntime").open_session)
    assert run.shapes == {"x": (2, 3, 4), "a": (2, 3, 4)}
    assert run.times["float"] > 0
    assert [value.name for value in model.graph.outputs] == ["y"]
