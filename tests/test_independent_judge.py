from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from qcompile.artifact import Artifact
from qcompile.backends.openvino.runtime import core
from qcompile.backends.openvino.session import load
from qcompile.errors import VerificationError
from tests.backends.portable import PER_TOKEN, parse
from tests.fuzz_artifacts import RIGHT, outcome
from tests.independent_judge import judge, with_float_linears

PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
LINEAR = f"(float[n,4] x) => (float[n,3] y) {{ {PAIR} f = DequantizeLinear (w, s, i) y = MatMul (d, f) }}"
TRANSPOSED = (
    "(float[n,2,4] x) => (float[n,2,4] v, float[n,4,2] y) { v = Sigmoid (x) t = Transpose <perm = [0, 2, 1]> (v) "
    "q = QuantizeLinear (t, s, z) y = DequantizeLinear (q, s, z) }"
)
BRANCHED = (
    f"(float[n,4] x) => (float[n,4] v, float[n,4] y) {{ {PAIR} v = Neg (d) l = ReduceMax <keepdims = 0> (x) "
    "c = Less (l, m) y = If (c) < then_branch = yes () => (float[n,4] a) { a = Exp (v) }, "
    "else_branch = no () => (float[n,4] b) { b = Neg (v) } > }"
)
TOKENS = (
    "(float[n,4] x) => (float[n,3] y) { d = qcompile.QuantizeDequantizePerToken (x) f = DequantizeLinear (w, s, i) "
)
ARRAYS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "i": np.int8(0),
    "m": np.float32(1),
    "w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
}


def proto_of(text: str, functions: str = "") -> onnx.ModelProto:
    used = {name: array for name, array in ARRAYS.items() if f" {name})" in text or f" {name}," in text or "(w" in text}
    proto = ir.to_proto(parse(text, functions, **used))
    assert isinstance(proto, onnx.ModelProto)
    return proto


def feeds(*shape: int) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(20)]


def reference(proto: onnx.ModelProto) -> Any:
    names = [value.name for value in proto.graph.output]
    return lambda feed: dict(zip(names, ReferenceEvaluator(proto).run(names, feed), strict=True))


def on_onnxruntime(proto: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [value.name for value in proto.graph.output]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def test_a_right_runtime_is_right_and_one_that_rounds_an_output_is_not() -> None:
    proto, level = proto_of(TRANSPOSED), onnxruntime.GraphOptimizationLevel
    right = judge(proto, feeds(1, 2, 4), on_onnxruntime(proto, level.ORT_DISABLE_ALL))
    assert right.compared == 3
    assert not right.wrong
    wrong = judge(proto, feeds(1, 2, 4), on_onnxruntime(proto, level.ORT_ENABLE_ALL))
    assert wrong.output == "v"
    assert wrong.off > 1000  # of what float32 explains; to the verifier it is half a step


def test_a_branch_that_gives_another_value_is_wrong(tmp_path: Path) -> None:
    proto = proto_of(BRANCHED)
    onnx.save(proto, tmp_path / "model.onnx")
    session = load(core().read_model(tmp_path / "model.onnx"), "the graph as it is")
    verdict = judge(proto, feeds(1, 4), session.run)
    assert (verdict.output, verdict.wrong) == ("y", True)


@pytest.mark.parametrize("constant", ["w", "i", "s"])
def test_one_integer_or_scale_that_is_hardly_off_is_wrong(constant: str) -> None:
    proto, other = proto_of(LINEAR), proto_of(LINEAR)
    (tensor,) = (each for each in other.graph.initializer if each.name == constant)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] = array.flat[0] * np.float32(1.0001) if constant == "s" else array.flat[0] + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, constant))
    assert not judge(proto, feeds(1, 4), reference(proto)).wrong
    assert judge(proto, feeds(1, 4), reference(other)).wrong


def test_other_shapes_types_and_what_is_not_finite_are_wrong() -> None:
    proto = proto_of(LINEAR)
    for change in (
        lambda y: y[:, :2],
        lambda y: y.astype(np.float64),
        lambda y: np.where(y == y.max(), np.nan, y).astype(np.float32),
    ):
        run = reference(proto)
        assert judge(proto, feeds(1, 4), lambda feed: {"y": change(run(feed)["y"])}).off == np.inf  # noqa: B023


TIES = {
    "one scale": (LINEAR, [[0.125, 0.07, 0.21, 0.31]]),
    "a scale for each token": (TOKENS + "y = MatMul (d, f) }", [[1.27, 0.105, 0.2, 0.3]]),
    "a scale at run time": (
        "(float[n,4] x) => (float[n,4] y) { q, a, b = DynamicQuantizeLinear (x) y = DequantizeLinear (q, a, b) }",
        [[2.55, 0.105, 0.2, 0.3]],
    ),
    "a comparison": (BRANCHED, [[1, 0.07, 0.21, 0.31]]),
}


@pytest.mark.parametrize(("text", "x"), TIES.values(), ids=TIES)
def test_inputs_near_a_tie_are_not_used(text: str, x: list[list[float]]) -> None:
    proto = proto_of(text, PER_TOKEN)
    tie = np.array(x, np.float32)
    assert judge(proto, [{"x": tie}], reference(proto)).compared == 0
    away = tie + np.array([[0.011, 0.0013, 0, 0]], np.float32)
    assert judge(proto, [{"x": away}], reference(proto)).compared == 1


def test_what_it_does_not_know_is_refused() -> None:
    for text in (
        "(float[1,1,4] x) => (float[1,1,3] y) { y = MaxPool <kernel_shape = [2]> (x) }",
        "(float[n,4] x) => (float[n,4] y) { y = Round (x) }",
    ):
        with pytest.raises(ValueError, match="no judgement of"):
            judge(proto_of(text), [], reference(proto_of(LINEAR)))


def test_linears_that_openvino_leaves_in_float_read_what_is_quantized() -> None:
    text = TOKENS.replace("(float[n,3] y)", "(float[n,3] y, float[n,4] o)") + "y = MatMul (d, f) o = Abs (d) }"
    proto = with_float_linears(proto_of(text, PER_TOKEN))
    assert [list(node.input) for node in proto.graph.node if node.op_type in ("MatMul", "Abs")] == [["x", "f"], ["d"]]


def test_the_run_over_many_graphs_tells_wrong_from_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(0) == RIGHT
    run = Artifact.run
    with monkeypatch.context() as patch:
        patch.setattr(Artifact, "run", lambda self, feed: {k: v * 1.001 for k, v in run(self, feed).items()})
        assert outcome(0).startswith("WRONG past verify: ")
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise VerificationError("artifact on nothing", "it is refused", "Mend it")

        patch.setattr("qcompile.compile_stages.verify_artifact", refuse)
        assert outcome(0).startswith("REFUSED although right, w8a8-static for onnxruntime: artifact on nothing")
