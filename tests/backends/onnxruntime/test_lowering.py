from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes import common

from qcompile.backends.onnxruntime import BACKEND, DATA_FILE, MODEL_FILE
from tests.backends.onnxruntime.rewrites import operators
from tests.backends.portable import PER_TOKEN, linear_case, parse, reference

ENCODER_LAYER = """(float[N,S,32] x) => (float[N,S,32] y)
{
    xq = QuantizeLinear (x, s, z)
    xd = DequantizeLinear (xq, s, z)
    fq = DequantizeLinear <axis = 1> (w, ws, wz)
    mq = MatMul (xd, fq)
    q = Add (mq, b)
    mk = MatMul (xd, fq)
    k = Add (mk, b)
    rq = Reshape (q, heads)
    rk = Reshape (k, heads)
    tq = Transpose <perm = [0, 2, 1, 3]> (rq)
    tk = Transpose <perm = [0, 2, 1, 3]> (rk)
    o = Attention (tq, tk, tk)
    to = Transpose <perm = [0, 2, 1, 3]> (o)
    a = Reshape (to, flat)
    aq = QuantizeLinear (a, s, z)
    ad = DequantizeLinear (aq, s, z)
    mo = MatMul (ad, fq)
    p = Add (mo, b)
    h = Add (p, x)
    n = LayerNormalization <axis = -1> (h, gamma, b)
    nd = qcompile.QuantizeDequantizePerToken (n)
    fd = DequantizeLinear <axis = 1> (w, ws, wz)
    mf = MatMul (nd, fd)
    f = Add (mf, b)
    y = Gelu (f)
}"""


def encoder_layer() -> ir.Model:
    rng = np.random.default_rng(0)
    return parse(
        ENCODER_LAYER,
        PER_TOKEN,
        s=np.float32(0.03),
        z=np.int8(-10),
        w=rng.integers(-127, 128, (32, 32)).astype(np.int8),
        ws=rng.uniform(0.0005, 0.001, 32).astype(np.float32),
        wz=np.zeros(32, np.int8),
        b=rng.standard_normal(32).astype(np.float32) / 10,
        gamma=np.ones(32, np.float32),
        heads=np.array([0, 0, 4, 8]),
        flat=np.array([0, 0, 32]),
    )


def test_encoder_layer(tmp_path: Path) -> None:
    model = encoder_layer()
    lowered = BACKEND.lower(model, tmp_path, target="avx512-vnni")
    assert lowered.findings == ()
    written = ir.load(tmp_path / lowered.model_file)
    zero_points = [node.inputs[2] for node in written.graph if node.op_type == "QuantizeLinear"]
    assert {value.dtype for value in zero_points if value is not None} == {ir.DataType.UINT8}
    per_token = {"ReduceMax": 1, "ReduceMin": 1, "Neg": 1, "Max": 1, "Div": 1, "Mul": 2, "Add": 1}
    assert operators(written) == {
        "QuantizeLinear": 3,
        "MatMulIntegerToFloat": 4,
        "Attention": 1,
        "Sum": 1,
        "LayerNormalization": 1,
        "Gelu": 1,
        **per_token,
    }


def test_argument_with_inferred_types_is_not_changed(tmp_path: Path) -> None:
    model = encoder_layer()
    common.ShapeInferencePass()(model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    BACKEND.lower(model, tmp_path, target=None)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_stamps_are_those_of_the_oldest_supported_runtime(tmp_path: Path) -> None:
    model = encoder_layer()
    model.ir_version = 13
    BACKEND.lower(model, tmp_path, target=None)
    proto = onnx.load(tmp_path / MODEL_FILE)
    onnx.checker.check_model(proto)
    assert proto.ir_version == 10
    assert {each.domain: each.version for each in proto.opset_import} == {"": 23, "com.microsoft": 1}
    assert not proto.functions


def test_float_model_needs_no_operators_of_the_runtime(tmp_path: Path) -> None:
    BACKEND.lower(parse("(float[N] x) => (float[N] y) { y = Neg (x) }"), tmp_path, target=None)
    assert [each.domain for each in onnx.load(tmp_path / MODEL_FILE).opset_import] == [""]


def test_function_without_an_integer_reader_is_inlined(tmp_path: Path) -> None:
    model = parse("(float[N,8] x) => (float[N,8] y) { y = qcompile.QuantizeDequantizePerToken (x) }", PER_TOKEN)
    feed = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    BACKEND.lower(model, tmp_path, target=None)
    assert not onnx.load(tmp_path / MODEL_FILE).functions
    result = BACKEND.open_artifact(tmp_path / MODEL_FILE, threads=1).run(feed)["y"]
    np.testing.assert_allclose(result, reference(model, feed)["y"], rtol=1e-5)


def test_large_weights_go_into_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.backends.onnxruntime.SINGLE_FILE_BYTES", 4096)
    weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    model = parse("(float[N,32] x) => (float[N,64] y) { y = MatMul (x, w) }", w=weight)
    lowered = BACKEND.lower(model, tmp_path, target=None)
    assert lowered.files == (MODEL_FILE, DATA_FILE)
    assert (tmp_path / DATA_FILE).stat().st_size == weight.nbytes
    plain = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"])
    (result,) = plain.run(None, {"x": np.eye(32, dtype=np.float32)})
    np.testing.assert_allclose(result, weight, rtol=1e-6)


def test_weights_of_another_folder_are_written_into_the_artifact(tmp_path: Path) -> None:
    case = linear_case()
    (tmp_path / "source").mkdir()
    (tmp_path / "artifact").mkdir()
    ir.save(case.model, tmp_path / "source" / "m.onnx", external_data="m.bin", size_threshold_bytes=0)
    model = ir.load(tmp_path / "source" / "m.onnx")
    BACKEND.lower(model, tmp_path / "artifact", target=None)
    proto = onnx.load(tmp_path / "artifact" / MODEL_FILE, load_external_data=False)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())


def test_lazy_weights_are_computed_when_they_are_written(tmp_path: Path) -> None:
    case = linear_case()
    weight = case.model.graph.initializers["w"]
    eager = weight.const_value
    assert eager is not None
    weight.const_value = ir.LazyTensor(lambda: eager, dtype=eager.dtype, shape=ir.Shape(eager.shape), name="w")
    BACKEND.lower(case.model, tmp_path, target=None)
    result = BACKEND.open_artifact(tmp_path / MODEL_FILE, threads=1).run(case.feed)["y"]
    assert np.abs(result - reference(case.model, case.feed)["y"]).max() <= case.step
