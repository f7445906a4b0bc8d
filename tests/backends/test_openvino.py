"""OpenVINO through the conformance suite, and its sessions. Its rewrites are tested one by one in openvino/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import InputError, MissingDependencyError, ModelError, UnsupportedError
from qcompile.reference_evaluator import evaluate
from tests.backends.conformance import BackendConformance
from tests.backends.portable import (
    PER_TOKEN,
    Case,
    attention_case,
    conv_case,
    decoder_case,
    dynamic_per_tensor,
    dynamic_per_token,
    fixed_shapes,
    linear_case,
    parse,
    reference,
    two_layers,
    weight,
)

openvino = pytest.importorskip("openvino")

from qcompile.backends import openvino as room  # noqa: E402
from qcompile.backends.openvino import readback, runtime  # noqa: E402

BACKEND = room.BACKEND


class TestOpenVino(BackendConformance):
    name = "openvino"
    # OpenVINO quantizes in finer groups than the model says, so each of the 32 products differs by up to half a step,
    # at random: 5 standard deviations of the sum, sqrt(32 / 12), with weights of half the largest on average.
    dynamic_steps = 4.0

    def integer_kernels(self, model_file: Path) -> int:
        return len(readback.integer_kernels(BACKEND.open_artifact(model_file, threads=1).compiled))

    def test_conv_transpose(self, backend: Any, tmp_path: Path) -> None:
        """The table promises it for symmetric int8 only; with a zero point it stays float, and lower says so."""
        case = conv_case(kind="ConvTranspose", bias="float32", requantized=False)
        lowered = self.check(backend, case, tmp_path, integer=0)
        (finding,) = lowered.findings
        assert finding.action == "kept"
        assert "no integer kernel" in finding.reason
        case.model.graph.initializers["z"].const_value = ir.tensor(np.int8(0), name="z")
        assert self.check(backend, case, tmp_path).findings == ()


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("sym", [True, False])
def test_the_last_layer_is_found_under_the_name_of_the_output(kind: str, dtype: str, sym: bool, tmp_path: Path) -> None:
    """It has no bias, and OpenVINO names what it makes of it after the output of the model."""
    case = fixed_shapes(two_layers(kind, dtype, sym=sym))
    for index, node in enumerate(case.model.graph):
        node.name = f"layer.{index}"
    assert BACKEND.lower(case.model, tmp_path, target=None).findings == ()


def static_attention(quantized: str) -> Case:
    """attention_case with a Q/DQ pair at the heads named in `quantized`."""
    case = attention_case()
    attention = next(node for node in case.model.graph if node.op_type == "Attention")
    for index, name in enumerate("qkv"):
        if name not in quantized:
            continue
        scale = ir.val(f"s_{name}", const_value=ir.tensor(np.float32(0.03), name=f"s_{name}"))
        zero = ir.val(f"z_{name}", const_value=ir.tensor(np.int8(0), name=f"z_{name}"))
        for value in (scale, zero):
            case.model.graph.register_initializer(value)
        quantize = ir.node("QuantizeLinear", [attention.inputs[index], scale, zero], name=f"quantize_{name}")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"dequantize_{name}")
        case.model.graph.insert_before(attention, [quantize, dequantize])
        attention.replace_input_with(index, dequantize.outputs[0])
    return case


@pytest.mark.parametrize(("quantized", "integer"), [("qk", 2), ("v", 0), ("qkv", 2)])
def test_scores_of_quantized_heads_are_computed_in_integers(quantized: str, integer: int, tmp_path: Path) -> None:
    case = static_attention(quantized)
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    session = BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1)
    # One quantization step of a value.
    np.testing.assert_allclose(session.run(case.feed)["y"], reference(case.model, case.feed)["y"], atol=0.03, rtol=0)
    types = [
        port.get_element_type().to_string()
        for node in session.compiled.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) in ("Subgraph", "MatMul")
        for port in node.inputs()
    ]
    assert types.count("i8") == integer
    assert [finding.action for finding in lowered.findings] == (["quantized"] if integer else [])


def test_attention_over_a_cache_is_float_and_said_to_be(tmp_path: Path) -> None:
    heads = "float[N,2,S,8]"
    model = parse(
        f"""({heads} q, {heads} k, {heads} v, float[N,2,P,8] past_k, float[N,2,P,8] past_v)
            => ({heads} y, float[N,2,T,8] new_k, float[N,2,T,8] new_v)
        {{
            qq = QuantizeLinear (q, s, z)
            qd = DequantizeLinear (qq, s, z)
            kq = QuantizeLinear (k, s, z)
            kd = DequantizeLinear (kq, s, z)
            y, new_k, new_v = Attention <is_causal = 1> (qd, kd, v, , past_k, past_v)
        }}""",
        s=np.float32(0.03),
        z=np.int8(0),
    )
    (finding,) = BACKEND.lower(model, tmp_path, target=None).findings
    assert (finding.layer, finding.action) == ("y", "kept")


@pytest.mark.parametrize("make", [dynamic_per_tensor, dynamic_per_token])
def test_dynamic_is_closer_to_float_than_the_portable_graph(make: Any, tmp_path: Path) -> None:
    case = make()
    dynamic = reference(case.model, case.feed)["y_a"]
    bypassed = case.model.clone()
    (float_input,) = bypassed.graph.inputs
    for node in bypassed.graph:
        if node.op_type == "MatMul":
            node.replace_input_with(0, float_input)
    exact = reference(bypassed, case.feed)["y_a"]
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    result = BACKEND.open_artifact(tmp_path / lowered.model_file, threads=1).run(case.feed)["y_a"]
    error = np.linalg.norm(result - exact)
    assert 0 < error < 1.1 * np.linalg.norm(dynamic - exact)


def test_the_channels_behind_the_last_group_have_a_scale_of_their_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = parse(
        """(float[N,120] x) => (float[N,32] y) {
            d = qcompile.QuantizeDequantizePerToken (x)
            f = DequantizeLinear <axis = 1> (w, ws, wz)
            y = MatMul (d, f)
        }""",
        PER_TOKEN,
        **weight(random, (120, 32), axis=1),
    )
    lowered = BACKEND.lower(model, tmp_path, target=None)
    (probe,) = BACKEND.probes(tmp_path / lowered.model_file, [])
    channels = probe.channels_per_scale(120)
    if not readback.quantizes_at_run_time(64, 16):
        assert (channels, [finding.action for finding in lowered.findings]) == (0, ["kept"])  # without VNNI
        return
    assert (channels, lowered.findings) == (16, ())
    feed = {"x": random.standard_normal((8, 120)).astype(np.float32)}
    expected = evaluate(model, feed, channels_per_scale=lambda _: channels)["y"]
    np.testing.assert_allclose(probe.session.run(feed)["y"], expected, rtol=0, atol=1e-5)


def test_plain_openvino_honours_the_group_size_in_the_file(tmp_path: Path) -> None:
    for case, size in ((dynamic_per_token(), 32), (linear_case(), 0)):
        lowered = BACKEND.lower(case.model, tmp_path, target="avx512-vnni")
        plain = openvino.Core().compile_model(tmp_path / lowered.model_file, "CPU")
        assert plain.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == size


def test_layers_are_named_in_the_read_back(tmp_path: Path) -> None:
    case = linear_case()
    for node in case.model.graph:
        if node.op_type == "MatMul":
            node.name = "encoder.query"
    lowered = BACKEND.lower(case.model, tmp_path, target=None)
    assert "encoder.query" in readback.integer_layers(BACKEND.open_artifact(tmp_path / lowered.model_file).compiled)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_precision_is_what_was_asked_for(precision: Any) -> None:
    session = BACKEND.open_session(linear_case().model, threads=1, precision=precision)
    wanted = {"f32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        wanted = openvino.Type.f32
    assert session.compiled.get_property("INFERENCE_PRECISION_HINT") == wanted
    assert session.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_names_of_values_that_the_runtime_merges_survive(tmp_path: Path) -> None:
    model = parse(
        """(float[N,4] x, float[N,4] unused)
            => (float[N,4] y, float[N,4] same, float[N,4] copy, float[N,4] z, float[N,4] drop)
        {
            y = Relu (x)
            drop = Dropout (y)
            a = Neg (x)
            z = Identity (a)
            same = Identity (y)
            copy = Identity (x)
        }"""
    )
    x = np.array([[-1, 2, -3, 4]], np.float32)
    lowered = BACKEND.lower(model, tmp_path, target=None)
    for session in (BACKEND.open_session(model), BACKEND.open_artifact(tmp_path / lowered.model_file)):
        results = session.run({"x": x, "unused": x})
        assert list(results) == ["y", "same", "copy", "z", "drop"]
        np.testing.assert_array_equal(results["same"], np.maximum(x, 0))
        np.testing.assert_array_equal(results["copy"], x)
        np.testing.assert_array_equal(results["z"], -x)


def test_results_are_not_overwritten_by_the_next_run() -> None:
    case = linear_case()
    session = BACKEND.open_session(case.model)
    first = session.run(case.feed)["y"]
    kept = first.copy()
    session.run({"x": case.feed["x"] * 2})
    np.testing.assert_array_equal(first, kept)


def test_a_strided_feed_is_read_as_it_looks() -> None:
    case = linear_case()
    x = np.asfortranarray(case.feed["x"])
    session = BACKEND.open_session(case.model)
    np.testing.assert_array_equal(session.run({"x": x})["y"], session.run(case.feed)["y"])


def test_unknown_input_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        BACKEND.open_session(attention_case().model).run({"maks": np.ones((1, 1, 1, 7), bool)})
    assert "'mask'" in caught.value.mend


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_along_either_axis_of_a_weight(axis: int) -> None:
    """Without our rewrite OpenVINO 2026.4 is wrong for axis 1: openvino PR 32918."""
    rng = np.random.default_rng(0)
    shape = [64, 48]
    blocks = [size // 16 if index == axis else size for index, size in enumerate(shape)]
    model = parse(
        f"""(float[N,64] x) => (float[N,48] y)
        {{
            f = DequantizeLinear <axis = {axis}, block_size = 16> (w, s, z)
            y = MatMul (x, f)
        }}""",
        w=rng.integers(-127, 128, shape).astype(np.int8),
        s=rng.uniform(0.01, 0.1, blocks).astype(np.float32),
        z=rng.integers(-5, 5, blocks).astype(np.int8),
    )
    feed = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    expected = reference(model, feed)["y"]
    result = BACKEND.open_session(model).run(feed)["y"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_blocks_of_a_computed_value_are_refused() -> None:
    model = parse(
        """(uint8[4,32] w) => (float[4,32] y) { y = DequantizeLinear <axis = 1, block_size = 16> (w, s) }""",
        s=np.ones((4, 2), np.float32),
    )
    with pytest.raises(UnsupportedError) as caught:
        BACKEND.open_session(model)
    assert "blocks" in caught.value.reason


def test_a_model_that_openvino_refuses(tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23, "other" : 1]> g (float[2] x) => (float[2] y) { y = other.Unheard(x) }'
    )
    with pytest.raises(ModelError, match="Unheard"):
        BACKEND.open_session(model)
    (tmp_path / "model.xml").write_text("not a model")
    with pytest.raises(ModelError, match=r"model\.xml"):
        BACKEND.open_artifact(tmp_path / "model.xml")


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for cached in (runtime.openvino, runtime.core):
        cached.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        BACKEND.open_session(linear_case().model)
    assert "pip install 'qcompile[openvino]'" in caught.value.mend


def test_decoder_keeps_the_attention_operator(tmp_path: Path) -> None:
    lowered = BACKEND.lower(decoder_case().model, tmp_path, target=None)
    model = openvino.Core().read_model(tmp_path / lowered.model_file)
    assert [node.get_type_name() for node in model.get_ops()].count("ScaledDotProductAttention") == 1
