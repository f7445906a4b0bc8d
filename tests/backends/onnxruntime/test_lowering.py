from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile import backends
from qcompile.backends.onnxruntime import BACKEND, DATA_FILE, MODEL_FILE
from qcompile.errors import InputError, ModelError
from tests.backends.onnxruntime.rewrites import operators
from tests.backends.portable import PER_TOKEN, dynamic_per_token, linear_case, parse, reference

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


def test_stamps_are_those_of_the_oldest_supported_runtime(tmp_path: Path) -> None:
    BACKEND.lower(encoder_layer(), tmp_path, target=None)
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


@pytest.mark.parametrize("optimization", ["disabled", "basic", "extended", "all"])
def test_results_do_not_depend_on_the_optimizations_of_the_runtime(tmp_path: Path, optimization: str) -> None:
    case = dynamic_per_token()
    BACKEND.lower(case.model, tmp_path, target=None)
    session = BACKEND.open_artifact(tmp_path / MODEL_FILE, threads=1, optimization=optimization)  # type: ignore[arg-type]
    for name, expected in reference(case.model, case.feed).items():
        excess = np.abs(session.run(case.feed)[name] - expected) - case.step - 1e-5 * np.abs(expected).max()
        assert excess.max() <= 0


def test_options_reach_the_runtime() -> None:
    session = BACKEND.open_session(linear_case().model, threads=1, optimization="basic")
    options = session.inference.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


def test_refused_model_names_the_runtime_and_the_reason() -> None:
    model = parse("(float[N] x) => (float[N] y) { y = Neg (x) }")
    next(iter(model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(ModelError) as caught:
        backends.get("onnxruntime").open_session(model)
    assert "NoSuchOperator" in caught.value.reason
    assert onnxruntime.__version__ in caught.value.reason


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.onnx"):
        BACKEND.open_artifact(tmp_path / "gone.onnx")


def test_values_that_a_kernel_refuses_are_an_input_error() -> None:
    model = parse("(float[N,4] x, float[M,4] r) => (float[K,4] y) { y = Add (x, r) }")
    feed = {"x": np.zeros((2, 4), np.float32), "r": np.zeros((3, 4), np.float32)}
    with pytest.raises(InputError) as caught:
        BACKEND.open_session(model, threads=1).run(feed)
    assert "x [2, 4], r [3, 4]" in caught.value.subject
