from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.passes.materialize_reshapes import MaterializeReshapes

TEXT = """
<ir_version: 10, opset_import: ["" : 20]> g (float[{x}] x, int64[{rank}] target) => (float[M] y)
<int64[1] flat = {{-1}}> {{ a = Reshape <allowzero=1> (x, target) y = Reshape(a, flat) }}
"""


def _reshaped(x: str, output: list[int | str]) -> ir.Model:
    """A model with a computed target whose result is known, as torch's exporter knows it, to have this shape."""
    model = ir.from_onnx_text(TEXT.format(x=x, rank=len(output)))
    model.graph.node(0).outputs[0].shape = ir.Shape(output)
    return model


@pytest.mark.parametrize(
    ("x", "output", "target"),
    [
        ("batch, sequence, 12", ["batch", "sequence", 3, 4], [0, 0, 3, 4]),
        ("batch, sequence, 3, 4", ["batch", "sequence", 12], [0, 0, 12]),
        ("batch, sequence, 12", ["sequence", 24], [-1, 24]),
        ("6, 4", [3, 8], [3, 8]),
    ],
)
def test_targets_become_constant(x: str, output: list[int | str], target: list[int]) -> None:
    model = _reshaped(x, output)
    assert MaterializeReshapes()(model).modified
    node = model.graph.node(0)
    assert node.inputs[1].const_value.numpy().tolist() == target
    assert "allowzero" not in node.attributes
    assert not MaterializeReshapes()(model).modified


def test_numbers_stay(rewrite) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, n, 12] x) => (float[batch, n, 3, 4] y)
        <int64[2] tail = {3, 4}> { s = Shape <start=0, end=2> (x) t = Concat <axis=0> (s, tail) y = Reshape(x, t) }"""
    model = rewrite(text, MaterializeReshapes()).model
    assert model.graph.node(-1).inputs[1].const_value.numpy().tolist() == [0, 0, 3, 4]


def test_targets_of_one_kind_share_a_constant() -> None:
    model = _reshaped("batch, sequence, 12", ["batch", "sequence", 3, 4])
    again = ir.node("Reshape", [model.graph.inputs[0], model.graph.inputs[1]], name="again")
    again.outputs[0].shape = ir.Shape(["batch", "sequence", 3, 4])
    model.graph.insert_after(model.graph.node(0), again)
    MaterializeReshapes()(model)
    assert again.inputs[1] is model.graph.node(0).inputs[1]


@pytest.mark.parametrize("output", [["other", "rest", 12], [None, None, 4], ["sequence", "batch", 12]])
def test_two_dims_that_nobody_knows_are_left(output: list[int | str | None]) -> None:
    assert not MaterializeReshapes()(_reshaped("batch, sequence, 12", output)).modified


@pytest.mark.parametrize(
    ("x", "output"), [("0, batch", ["batch", 0]), ("batch, sequence, 12", ["batch", "rest", 4])], ids=["is", "may be"]
)
def test_a_dim_of_what_is_empty_is_not_inferred(x: str, output: list[int | str]) -> None:
    assert not MaterializeReshapes()(_reshaped(x, output)).modified


def test_shapes_that_are_not_known_are_left() -> None:
    model = ir.from_onnx_text(TEXT.format(x="batch, 4", rank=2))
    common.ShapeInferencePass()(model)
    model.graph.node(0).outputs[0].shape = None
    assert not MaterializeReshapes()(model).modified
