"""RemoveUnusedNodes: what nothing reads."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qcompile.graph import all_nodes
from qcompile.unused_nodes import RemoveUnusedNodes

BRANCHES = """<ir_version: 10, opset_import: ["" : 23]>
main (float[n, 4] x, bool c) => (float[n, 4] y) <float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}> {
    y = Relu(x)
    h = Neg(x)
    v = MatMul(h, w)
    z = If(c) <
      then_branch = yes () => (float[n, 4] a) { a = Abs(v) },
      else_branch = no () => (float[n, 4] b) { b = Exp(x) }>
    q = If(c) <
      then_branch = yes2 () => (float[n, 4] a2) { a2 = Abs(z) },
      else_branch = no2 () => (float[n, 4] b2) { b2 = Exp(v) }>
}"""


def test_with_an_if_goes_what_only_its_branches_read() -> None:
    model = ir.from_proto(onnx.parser.parse_model(BRANCHES))
    assert RemoveUnusedNodes()(model).modified
    assert [node.op_type for node in all_nodes(model)] == ["Relu"]
    assert not model.graph.initializers
    assert not RemoveUnusedNodes()(model).modified


def test_what_a_living_branch_reads_stays() -> None:
    model = ir.from_proto(onnx.parser.parse_model(BRANCHES.replace("float[n, 4] y)", "float[n, 4] y, float[n, 4] z)")))
    assert RemoveUnusedNodes()(model).modified
    assert [node.op_type for node in all_nodes(model)] == ["Relu", "Neg", "MatMul", "If", "Abs", "Exp"]
