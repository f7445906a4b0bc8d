"""What the user calls a layer, and what belongs to it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.graph import computed_constants, layer_name, linears, sole_reader

MODEL = """
<ir_version: 10, opset_import: ["" : 23]> g (float[N, 4] x) => (float[N, 4] y) { [named] y = Relu (x) }
"""


def named(scopes: str | None) -> str:
    (node,) = ir.from_onnx_text(MODEL).graph
    if scopes is not None:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    return layer_name(node)


def test_the_module_that_owns_the_traced_value_gives_the_name() -> None:
    assert named("['', 'encoder', 'encoder.linear', 'linear']") == "encoder.linear"


@pytest.mark.parametrize(
    "scopes", [None, "", "[]", "['linear']", "['', 'linear']", "not python [", "5", "'text'", "f(x)", "{[]: 1}"]
)
def test_without_a_module_the_node_gives_the_name(scopes: str | None) -> None:
    assert named(scopes) == "named"


BIAS_IN_A_BRANCH = """
<ir_version: 10, opset_import: ["" : 23]> g (float[N, 2] x, bool q) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}> {
    p = MatMul(x, w)
    y = If (q) <
        then_branch = then () => (float[N, 2] t) { t = Add(p, b) },
        else_branch = other () => (float[N, 2] e) { r = Relu(x) e = Neg(r) }
    >
}
"""


def test_a_bias_that_is_added_in_a_branch_is_not_the_linears() -> None:
    model = ir.from_onnx_text(BIAS_IN_A_BRANCH)
    (linear,) = linears(model)
    assert (linear.add, linear.bias, linear.output) == (None, None, model.graph[0].outputs[0])


def test_a_value_of_a_branch_has_a_reader_there() -> None:
    branch = ir.from_onnx_text(BIAS_IN_A_BRANCH).graph[1].attributes["else_branch"].as_graph()
    assert sole_reader(branch[0].outputs[0]) is branch[1]


def test_what_constants_make_is_known_and_what_chance_or_an_input_takes_part_in_is_not() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y, float[2] z)
        <float[2] w = {1, 2}, bool q = {1}> {
            a = Relu(w)
            b, c = Split <num_outputs = 2> (a)
            d = RandomNormalLike(a)
            e = RandomNormal <shape = [2]> ()
            f = If (q) <
                then_branch = then () => (float[2] t) { t = Neg(x) },
                else_branch = other () => (float[2] u) { u = Neg(a) }
            >
            g = Add(a, d)
            h = Add(a, x)
            y = Concat <axis = 0> (b, c)
            z = Sum(e, f, g, h)
        }"""
    )
    assert {value.name for value in computed_constants(model)} == {"a", "b", "c", "y"}
