from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.subgraph_inputs import requantize_for_subgraphs
from qcompile.graph import all_nodes
from tests.backends.portable import parse

BODY = """
y = If (c) <
  then_branch = yes () => (float[n,5,4] a) { a = Abs (v) },
  else_branch = no () => (float[n,5,4] b) { e = If (c) <
    then_branch = yes2 () => (float[n,5,4] f) { f = Exp (v) },
    else_branch = no2 () => (float[n,5,4] g) { g = Neg (v) }
  > b = Identity (e) }
>"""
PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
MOVED = {
    "Transpose": f"{PAIR} v = Transpose <perm = [0, 2, 1]> (d)",
    "chain": f"{PAIR} i = Identity (d) t = Transpose <perm = [0, 2, 1]> (i) v = MaxPool <kernel_shape = [1]> (t)",
    "read outside too": f"{PAIR} v = Transpose <perm = [0, 2, 1]> (d) u = Abs (v)",
    "without zero point": "q = QuantizeLinear <output_dtype = 3> (x, s) d = DequantizeLinear (q, s) "
    "v = Transpose <perm = [0, 2, 1]> (d)",
    "of constants": "d = DequantizeLinear (k, s, z) t = Transpose <perm = [0, 2, 1]> (d) v = Reshape (t, r)",
}
LEFT = {
    "dequantized as it is": "t = Transpose <perm = [0, 2, 1]> (x) q = QuantizeLinear (t, s, z) "
    "v = DequantizeLinear (q, s, z)",
    "computed on the way": f"{PAIR} t = Relu (d) v = Transpose <perm = [0, 2, 1]> (t)",
    "a scale for each channel": "q = QuantizeLinear <axis = 1> (x, m) d = DequantizeLinear <axis = 1> (q, m) "
    "v = Transpose <perm = [0, 2, 1]> (d)",
    "float": "v = Transpose <perm = [0, 2, 1]> (x)",
}


def model_of(text: str) -> ir.Model:
    arrays = {
        "s": np.float32(0.02),
        "z": np.int8(3),
        "m": np.linspace(0.01, 0.04, 4, dtype=np.float32),
        "k": np.arange(40, dtype=np.int8).reshape(2, 4, 5),
        "r": np.array([0, 0, 0]),
    }
    used = {name: array for name, array in arrays.items() if f" {name}" in text or f"({name}" in text}
    return parse(f"(float[n,4,5] x, bool c) => (float[n,5,4] y) {{ {text} {BODY} }}", **used)


@pytest.mark.parametrize("text", MOVED.values(), ids=MOVED)
def test_branches_read_a_pair_behind_what_moves(text: str) -> None:
    model = model_of(text)
    requantize_for_subgraphs(model)
    readers = [node for node in all_nodes(model) if node.op_type in ("Abs", "Exp", "Neg") and node.name != "u"]
    inside = [node.inputs[0] for node in readers if node.graph is not model.graph]
    assert {value.name for value in inside if value} == {"v.moved"}
    assert [node.op_type for node in model.graph if node.name and node.name.startswith("v.moved")] == [
        "QuantizeLinear",
        "DequantizeLinear",
    ]
    assert len(inside) == 3
    nodes = len(list(all_nodes(model)))
    requantize_for_subgraphs(model)
    assert len(list(all_nodes(model))) == nodes


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_others_are_left(text: str) -> None:
    model = model_of(text)
    before = len(list(all_nodes(model)))
    requantize_for_subgraphs(model)
    assert len(list(all_nodes(model))) == before


@pytest.mark.parametrize("text", [*MOVED.values(), *LEFT.values()], ids=[*MOVED, *LEFT])
@pytest.mark.parametrize("branch", [True, False])
def test_the_artifact_loads_and_computes_the_same(text: str, branch: bool, tmp_path: Path) -> None:
    model = model_of(text)
    feed = {"x": np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32), "c": np.array(branch)}
    expected = BACKEND.open_session(model, optimization="disabled").run(feed)["y"]
    lowered = BACKEND.lower(model, tmp_path, target=None)
    for session in (BACKEND.open_session(model), BACKEND.open_artifact(tmp_path / lowered.model_file)):
        np.testing.assert_allclose(session.run(feed)["y"], expected, rtol=1e-6, atol=1e-6)


def test_without_the_pair_the_runtime_dies(tmp_path: Path) -> None:
    """When this fails, ONNX Runtime is mended, and the rewrite is not needed for its new version."""
    ir.save(model_of(MOVED["Transpose"]), tmp_path / "model.onnx")
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(tmp_path / 'model.onnx')!r})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode < 0
