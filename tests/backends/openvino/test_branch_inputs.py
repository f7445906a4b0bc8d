from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.backends.openvino.branch_inputs import copy_outputs_that_bodies_read
from qcompile.backends.openvino.runtime import core
from qcompile.graph import all_nodes
from tests.backends.openvino.graphs import run_as_it_is, run_lowered
from tests.backends.portable import parse, reference

BRANCHES = "If (%s) < then_branch = %s () => (float[n,4] %s) { %s }, else_branch = %s () => (float[n,4] %s) { %s } >"
READ = {
    "by each branch": "y = " + BRANCHES % ("c", "yes", "a", "a = Abs (v)", "no", "b", "b = Neg (v)"),
    "once by an operator of two": "y = " + BRANCHES % ("c", "yes", "a", "a = Add (v, w)", "no", "b", "b = Neg (v)"),
    "by one branch": "y = " + BRANCHES % ("c", "yes", "a", "a = Mul (x, v)", "no", "b", "b = Neg (x)"),
    "by a branch of a branch": "y = "
    + BRANCHES
    % (
        "c",
        "yes",
        "a",
        "a = " + BRANCHES % ("c", "yes2", "d", "d = Exp (v)", "no2", "e", "e = Neg (v)"),
        "no",
        "b",
        "b = Neg (v)",
    ),
    "outside too": "u = Abs (v) y = " + BRANCHES % ("c", "yes", "a", "a = Abs (v)", "no", "b", "b = Mul (u, v)"),
}
OF_A_BRANCH = (
    "v, y = If (c) < then_branch = yes () => (float[n,4] a, float[n,4] d) { a = Sub (x, w) d = "
    + BRANCHES % ("c", "yes2", "e", "e = Exp (a)", "no2", "f", "f = Neg (a)")
    + "}, else_branch = no () => (float[n,4] b, float[n,4] g) { b = Neg (x) g = Abs (b) } >"
)
CASES = {name: f"v = Sub (x, w) {text}" for name, text in READ.items()} | {"output of a branch": OF_A_BRANCH}
REFUSED = ("once by an operator of two", "by one branch", "outside too")


def model_of(text: str) -> ir.Model:
    weight = np.array([1, -2, 0.5, 3], np.float32)
    return parse(f"(float[n,4] x, bool c) => (float[n,4] v, float[n,4] y) {{ {text} }}", w=weight)


def feed(branch: bool) -> dict[str, np.ndarray]:
    return {"x": np.array([[-1, 2, -3, 4]], np.float32), "c": np.array(branch)}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_bodies_read_no_output(text: str) -> None:
    model = model_of(text)
    nodes = len(list(all_nodes(model)))
    copy_outputs_that_bodies_read(model)
    assert [value.name for value in model.graph.outputs] == ["v", "y"]
    assert len(list(all_nodes(model))) == nodes + 1
    onnx.checker.check_model(ir.to_proto(model))
    for part in (model.graph, *model.graph.subgraphs()):
        assert all(node.graph is part for value in part.outputs for node in value.consumers())
    copy_outputs_that_bodies_read(model)
    assert len(list(all_nodes(model))) == nodes + 1


def test_others_are_left() -> None:
    for text in (
        "v = Sub (x, w) u = Abs (v) y = " + BRANCHES % ("c", "yes", "a", "a = Abs (u)", "no", "b", "b = Neg (x)"),
        "v = Sub (x, w) y = Abs (v)",
    ):
        model = model_of(text)
        nodes = len(list(all_nodes(model)))
        copy_outputs_that_bodies_read(model)
        assert len(list(all_nodes(model))) == nodes


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_every_output_is_what_the_graph_says(text: str, branch: bool, tmp_path: Path) -> None:
    model = model_of(text)
    found = run_lowered(model, feed(branch), tmp_path)
    assert list(found) == ["v", "y"]
    for name, array in reference(model, feed(branch)).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_without_the_copy_the_runtime_mistakes_them(name: str, tmp_path: Path) -> None:
    """When this fails, OpenVINO is mended, and the rewrite is not needed for its new version."""
    model = model_of(CASES[name])
    if name in REFUSED:
        ir.save(model, tmp_path / "model.onnx")
        with pytest.raises(RuntimeError, match="same number of outputs"):
            core().read_model(tmp_path / "model.onnx")
    else:
        found = run_as_it_is(model, feed(branch=True), tmp_path)
        assert not np.allclose(found["y"], reference(model, feed(branch=True))["y"])
