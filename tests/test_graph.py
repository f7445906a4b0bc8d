"""What the user calls a layer, and what belongs to it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from qcompile.graph import layer_name, linears, sole_reader

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
