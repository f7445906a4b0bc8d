from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.backends.onnxruntime.transposed_floats import keep_transposed_floats
from qcompile.graph import all_nodes
from tests.backends.portable import parse

TURN = "Transpose <perm = [0, 2, 1]>"
PAIR = "q = QuantizeLinear (t, s, z) y = DequantizeLinear (q, s, z)"
BRANCHES = """
o = If (c) <
  then_branch = yes () => (float[n,4,5] a) { a = Exp (v) },
  else_branch = no () => (float[n,4,5] b) { b = Neg (v) }
>"""
OUTPUT = "float[n,4,5] v, float[n,5,4] y"
BODY = """
o, y = If (c) <
  then_branch = yes () => (float[n,4,5] a, float[n,5,4] d) { %s },
  else_branch = no () => (float[n,4,5] e, float[n,5,4] f) { e = Neg (x) f = Transpose <perm = [0, 2, 1]> (e) }
>"""
INNER = "a = Abs (x) g = Transpose <perm = [0, 2, 1]> (a) q = QuantizeLinear (g, s, z) d = DequantizeLinear (q, s, z)"
ROUNDED = {
    "output": (OUTPUT, f"v = Abs (x) t = {TURN} (v) {PAIR}"),
    "read in branches": ("float[n,4,5] o, float[n,5,4] y", f"v = Abs (x) t = {TURN} (v) {PAIR} {BRANCHES}"),
    "output of a branch": ("float[n,4,5] o, float[n,5,4] y", BODY % INNER),
    "unsqueezed": ("float[n,4,5] v, float[n,1,5,4] y", f"v = Abs (x) u = {TURN} (v) t = Unsqueeze (u, i) {PAIR}"),
    "sliced, pooled": (
        "float[n,4,5] v, float[n,2,3] y",
        f"v = Abs (x) u = {TURN} (v) w = Slice (u, i, k, i) t = MaxPool <kernel_shape = [2]> (w) {PAIR}",
    ),
    "quantized twice": (
        f"{OUTPUT}, float[n,5,4] p",
        f"v = Abs (x) t = {TURN} (v) {PAIR} r = QuantizeLinear (t, s, z) h = DequantizeLinear (r, s, z) p = Exp (h)",
    ),
    "a scale for each channel": (
        OUTPUT,
        f"v = Abs (x) t = {TURN} (v) q = QuantizeLinear <axis = 2> (t, m) y = DequantizeLinear <axis = 2> (q, m)",
    ),
    "without zero point": (
        OUTPUT,
        f"v = Abs (x) t = {TURN} (v) q = QuantizeLinear <output_dtype = 3> (t, s) y = DequantizeLinear (q, s)",
    ),
}
LEFT = {
    "nothing else reads it": ("float[n,5,4] y", f"v = Abs (x) t = {TURN} (v) {PAIR}"),
    "an input": ("float[n,4,5] o, float[n,5,4] y", f"o = Abs (x) t = {TURN} (x) {PAIR}"),
    "transposed value read too": (f"{OUTPUT}, float[n,5,4] p", f"v = Abs (x) t = {TURN} (v) p = Exp (t) {PAIR}"),
    "computed on the way": (OUTPUT, f"v = Abs (x) u = {TURN} (v) t = Sqrt (u) {PAIR}"),
    "reshaped only": ("float[n,4,5] v, float[n,1,4,5] y", f"v = Abs (x) t = Unsqueeze (v, i) {PAIR}"),
    "dequantized": (
        OUTPUT,
        f"f = QuantizeLinear (x, s, z) v = DequantizeLinear (f, s, z) t = {TURN} (v) {PAIR}",
    ),
    "quantized in two ways": (
        f"{OUTPUT}, float[n,5,4] p",
        f"v = Abs (x) t = {TURN} (v) {PAIR} r = QuantizeLinear (t, l, z) p = DequantizeLinear (r, l, z)",
    ),
    "quantized behind a branch": (
        "float[n,5,4] o",
        "v = Abs (x) o = If (c) < then_branch = yes () => (float[n,5,4] a) { "
        f"t = {TURN} (v) q = QuantizeLinear (t, s, z) a = DequantizeLinear (q, s, z) }}, "
        f"else_branch = no () => (float[n,5,4] b) {{ b = {TURN} (v) }} >",
    ),
    "a scale for each channel, reshaped": (
        "float[n,4,5] v, float[n,5,4,1] y",
        f"v = Abs (x) u = {TURN} (v) t = Unsqueeze (u, k) q = QuantizeLinear <axis = 2> (t, m) "
        "y = DequantizeLinear <axis = 2> (q, m)",
    ),
}


def model_of(outputs: str, text: str) -> ir.Model:
    arrays = {
        "s": np.float32(0.1),
        "l": np.float32(0.2),
        "z": np.int8(3),
        "m": np.linspace(0.05, 0.2, 4, dtype=np.float32),
        "i": np.array([1]),
        "k": np.array([3]),
    }
    used = {name: array for name, array in arrays.items() if f" {name})" in text or f" {name}," in text}
    return parse(f"(float[n,4,5] x, bool c) => ({outputs}) {{ {text} }}", **used)


def feed(branch: bool = True) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32), "c": np.array(branch)}


@pytest.mark.parametrize("case", ROUNDED.values(), ids=ROUNDED)
def test_the_transpose_alone_reads_a_pair(case: tuple[str, str]) -> None:
    model = model_of(*case)
    nodes = len(list(all_nodes(model)))
    keep_transposed_floats(model)
    (transpose,) = (node for node in all_nodes(model) if node.op_type == "Transpose" and node.outputs[0].name in "tug")
    pair = transpose.inputs[0].producer()  # type: ignore[union-attr]
    assert pair is not None
    assert pair.op_type == "DequantizeLinear"
    assert len(list(all_nodes(model))) == nodes + 2
    onnx.checker.check_model(ir.to_proto(model))
    keep_transposed_floats(model)
    assert len(list(all_nodes(model))) == nodes + 2


@pytest.mark.parametrize("case", LEFT.values(), ids=LEFT)
def test_others_are_left(case: tuple[str, str]) -> None:
    model = model_of(*case)
    nodes = len(list(all_nodes(model)))
    keep_transposed_floats(model)
    assert len(list(all_nodes(model))) == nodes


@pytest.mark.parametrize("case", [*ROUNDED.values(), *LEFT.values()], ids=[*ROUNDED, *LEFT])
def test_every_output_is_what_the_graph_says(case: tuple[str, str], tmp_path: Path) -> None:
    model = model_of(*case)
    expected = BACKEND.open_session(model, optimization="disabled").run(feed())
    lowered = BACKEND.lower(model, tmp_path, target=None)
    for session in (BACKEND.open_session(model), BACKEND.open_artifact(tmp_path / lowered.model_file)):
        actual = session.run(feed())
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("case", ROUNDED.values(), ids=ROUNDED)
def test_without_the_pair_the_runtime_rounds_them(case: tuple[str, str]) -> None:
    """When this fails, ONNX Runtime is mended, and the rewrite is not needed for its new version."""
    model = model_of(*case)
    name = str(model.graph.outputs[0].name)
    expected = BACKEND.open_session(model, optimization="disabled").run(feed())[name]
    (actual,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run([name], feed())
    assert np.abs(actual - expected).max() > 0.02


def test_the_runtime_moves_integers(tmp_path: Path) -> None:
    lowered = BACKEND.lower(model_of(*ROUNDED["sliced, pooled"]), tmp_path, target=None)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / lowered.model_file, options)
    nodes = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    assert nodes == ["Abs", "QuantizeLinear", "Transpose", "Slice", "MaxPool", "DequantizeLinear"]
