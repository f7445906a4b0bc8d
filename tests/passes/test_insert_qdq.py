"""InsertQdq: exact operators, numerics within what the scales allow, one case per refusal."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.scheme import Scheme

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
PER_TENSOR_DYNAMIC = Scheme("uint8", sym=False, dynamic=True)
WEIGHTS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(6, 4, 3, 3)).astype(np.float32)


def parse(text: str, **initializers: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for name, array in initializers.items():
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
        )
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, used in enumerate(node.inputs):
                if used is not None and used.name == name:
                    node.replace_input_with(index, value)
    ShapeInferencePass(strict_mode=False)(model)
    return model


def calibrator(model: ir.Model, seed: int = 0, count: int = 8) -> Calibrator:
    generator = np.random.default_rng(seed)
    shape = [dim if isinstance(dim, int) else 5 for dim in model.graph.inputs[0].shape or ()]
    samples = [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)]
    return Calibrator(samples, ObserveChannels, get("onnxruntime").open_session)


def linear(bias: bool = True) -> ir.Model:
    if not bias:
        return parse("g (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }", w=WEIGHTS)
    text = "g (float[n, 4] x) => (float[n, 6] y) { p = MatMul(x, w) y = Add(p, b) }"
    return parse(text, w=WEIGHTS, b=np.arange(6, dtype=np.float32))


def convolution(text: str = "y = Conv(x, k, b)", kernel: np.ndarray = KERNEL) -> ir.Model:
    graph = f"g (float[n, 4, 8, 8] x) => (float y) {{ {text} }}"
    return parse(graph, k=kernel, b=np.arange(6, dtype=np.float32) / 10)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(ir.to_proto(model))
    session = get("onnxruntime").open_session(model, optimization="disabled")
    return next(iter(session.run({"x": x}).values()))


def relative_error(before: ir.Model, after: ir.Model, seed: int = 0) -> float:
    shape = [dim if isinstance(dim, int) else 5 for dim in before.graph.inputs[0].shape or ()]
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    expected, actual = run(before, x), run(after, x)
    return float(np.linalg.norm(expected - actual) / np.linalg.norm(expected))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("weights", [Scheme("int8", "per_channel"), Scheme("int8", "per_tensor")])
@pytest.mark.parametrize("activations", [Scheme("uint8", sym=False), Scheme("int8")])
def test_static_linear(activations, weights, rounding):
    model, before = linear(), linear()
    quantize = InsertQdq(activations, weights, rounding=rounding, calibrator=calibrator(model))
    result = quantize(model)
    assert operators(model) == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMul", "Add"]
    assert [(f.action, f.operator) for f in result.findings] == [("quantized", "Linear")]
    assert result.findings[0].sqnr_db > 30
    assert model.graph[1].inputs[1].const_value.shape == ()
    assert relative_error(before, model) < 0.02
    assert not quantize(model).modified


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        (PER_TENSOR_DYNAMIC, ["DequantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMul", "Add"]),
        (PER_TOKEN, ["DequantizeLinear", "QuantizeDequantizePerToken", "MatMul", "Add"]),
    ],
)
def test_dynamic_linear_needs_no_data(activations, expected):
    model, before = linear(), linear()
    quantize = InsertQdq(activations)
    assert quantize(model).modified
    assert operators(model) == expected
    assert relative_error(before, model) < 0.02
    assert not quantize(model).modified


def test_per_token_is_more_accurate_than_per_tensor_when_tokens_differ():
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32) * np.array([[1000.0], [1.0]], np.float32)
    errors = []
    for activations in (PER_TOKEN, PER_TENSOR_DYNAMIC):
        model = linear(bias=False)
        InsertQdq(activations)(model)
        errors.append(np.abs(run(model, x)[1] - x[1] @ WEIGHTS).max())
    assert errors[0] < errors[1] / 10


def test_linears_that_read_one_value_share_its_pair_and_others_keep_reading_it():
    body = "p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q) z = Relu(x)"
    text = f"g (float[n, 4] x) => (float[n, 6] y, float[n, 4] z) {{ {body} }}"
    model = parse(text, w=WEIGHTS, v=-2 * WEIGHTS)
    InsertQdq(calibrator=calibrator(model))(model)
    assert operators(model).count("QuantizeLinear") == 1
    relu = next(node for node in model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is model.graph.inputs[0]


def test_tied_weights_stay_one_initializer():
    text = "g (float[n, 4] x) => (float[n, 6] y) { p = MatMul(x, w) r = Relu(x) q = MatMul(r, w) y = Add(p, q) }"
    model = parse(text, w=WEIGHTS)
    InsertQdq(calibrator=calibrator(model))(model)
    integers = [value for value in model.graph.initializers.values() if value.shape == [4, 6]]
    assert [value.dtype for value in integers] == [ir.DataType.INT8]


def test_convolution_has_an_int32_bias_and_a_quantized_output():
    text = "c = Conv(x, k, b) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)"
    model, before = convolution(text), convolution(text)
    InsertQdq(calibrator=calibrator(model))(model)
    assert operators(model) == [
        *["DequantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "Conv", "Relu"],
        *["QuantizeLinear", "DequantizeLinear", "GlobalAveragePool", "Flatten"],
    ]
    bias = next(node for node in model.graph if node.op_type == "Conv").inputs[2].producer()
    x_scale, w_scale = (model.graph.initializers[name].const_value.numpy() for name in ("x.scale", "k.scale"))
    np.testing.assert_allclose(bias.inputs[1].const_value.numpy(), x_scale * w_scale, rtol=1e-6)
    assert bias.inputs[0].dtype == ir.DataType.INT32
    assert relative_error(before, model) < 0.05


def test_a_bias_that_would_clip_stays_float():
    kernel = KERNEL * 1e-9
    model = convolution("c = Conv(x, k, b) y = Relu(c)", kernel)
    InsertQdq(calibrator=calibrator(model))(model)
    assert next(node for node in model.graph if node.op_type == "Conv").inputs[2].name == "b"


def test_transposed_convolution():
    kernel = np.random.default_rng(2).normal(size=(4, 6, 3, 3)).astype(np.float32)
    text = "c = ConvTranspose(x, k, b) y = Relu(c)"
    model, before = convolution(text, kernel), convolution(text, kernel)
    InsertQdq(calibrator=calibrator(model))(model)
    assert operators(model).count("DequantizeLinear") == 2
    assert relative_error(before, model) < 0.02


@pytest.mark.parametrize(
    "x", [np.zeros((3, 4)), np.full((3, 4), 7.0), np.full((3, 4), 1e-42)], ids=["zero", "constant", "tiny"]
)
def test_degenerate_activations_give_defined_scales(x):
    model = linear()
    data = [{"x": x.astype(np.float32)}]
    InsertQdq(calibrator=Calibrator(data, ObserveChannels, get("onnxruntime").open_session))(model)
    scale = model.graph.initializers["x.scale"].const_value.numpy()
    assert np.isfinite(scale)
    assert scale >= np.finfo(np.float32).tiny
    np.testing.assert_allclose(run(model, data[0]["x"]), x @ WEIGHTS + np.arange(6), atol=0.5)


def test_seven_bits_stay_in_63():
    model = linear()
    InsertQdq(weights=Scheme("int8", "per_channel", bits=7), calibrator=calibrator(model))(model)
    quantized = model.graph.initializers["w.quantized"].const_value.numpy()
    assert np.abs(quantized).max() == 63


def test_static_without_data_is_refused():
    with pytest.raises(CalibrationError, match="calibration data"):
        InsertQdq()(linear())


def test_without_calibration_a_dynamic_recipe_rounds_to_nearest():
    quantize = InsertQdq(PER_TOKEN, rounding="gptq")
    assert quantize.without_calibration() == dataclasses.replace(quantize, rounding="nearest")
    assert InsertQdq().without_calibration() == InsertQdq()


def refused(model: ir.Model, quantize: InsertQdq) -> str:
    before = operators(model)
    result = quantize(model)
    assert not result.modified
    assert operators(model) == before
    (finding,) = result.findings
    return f"{finding.action}: {finding.reason}"


def test_ignored_layer():
    model = linear()
    name = InsertQdq(PER_TOKEN)(linear()).findings[0].layer
    assert refused(model, InsertQdq(PER_TOKEN, ignore=frozenset({name}))) == "ignored: the recipe leaves it out"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite(value):
    weight = WEIGHTS.copy()
    weight[1, 2] = value
    model = parse("g (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }", w=weight)
    assert refused(model, InsertQdq(PER_TOKEN)) == "kept: its weight holds NaN or infinity"


def test_sums_beyond_int32():
    weight = np.ones((70_000, 1), np.float32)
    model = parse("g (float[1, 70000] x) => (float[1, 1] y) { y = MatMul(x, w) }", w=weight)
    assert "70000 products of 8-bit values overflow" in refused(model, InsertQdq(PER_TENSOR_DYNAMIC))


def test_empty_weight():
    model = parse("g (float[n, 4] x) => (float[n, 0] y) { y = MatMul(x, w) }", w=np.zeros((4, 0), np.float32))
    assert refused(model, InsertQdq(PER_TOKEN)) == "kept: its weight is empty"


def test_convolution_under_dynamic_activations():
    assert "dynamic quantization is for linears" in refused(convolution(), InsertQdq(PER_TOKEN))


def test_operator_that_the_backend_has_not():
    quantize = InsertQdq(PER_TOKEN, operators=frozenset({"Conv"}))
    assert "the backend has no integer Linear" in refused(linear(), quantize)


def test_float16_weight_is_no_candidate():
    weight = WEIGHTS.astype(np.float16)
    model = parse("g (float16[n, 4] x) => (float16[n, 6] y) { y = MatMul(x, w) }", w=weight)
    result = InsertQdq(PER_TOKEN)(model)
    assert not result.modified
    assert result.findings == ()


def depthwise() -> tuple[ir.Model, Calibrator]:
    """Edge filters over a smooth, bright picture: a rounding error of their sum is an error of the whole output."""
    generator = np.random.default_rng(3)
    kernel = generator.normal(size=(4, 1, 3, 3)).astype(np.float32)
    kernel -= kernel.mean(axis=(2, 3), keepdims=True)
    text = "y = Conv <group = 4, pads = [1, 1, 1, 1]> (x, k)"
    model = parse(f"g (float[n, 4, 16, 16] x) => (float[n, 4, 16, 16] y) {{ {text} }}", k=kernel)
    smooth = [generator.normal(5, 1, (1, 4, 1, 1)) + generator.normal(0, 0.01, (1, 4, 16, 16)) for _ in range(8)]
    data = [{"x": picture.astype(np.float32)} for picture in smooth]
    return model, Calibrator(data, ObserveChannels, get("onnxruntime").open_session)


def test_depthwise_kernels_are_rounded_so_that_their_sums_stay():
    ratios = {}
    for rounding in ("nearest", "gptq"):
        model, data = depthwise()
        (finding,) = InsertQdq(rounding=rounding, calibrator=data)(model).findings
        ratios[rounding] = finding.sqnr_db
    assert ratios["gptq"] > ratios["nearest"] + 3


def test_a_convolution_below_the_floor_stays_float():
    model, data = depthwise()
    result = InsertQdq(calibrator=data, min_convolution_sqnr_db=200.0)(model)
    assert not result.modified
    assert [finding.action for finding in result.findings] == ["kept"]
    assert "below 200 dB" in result.findings[0].reason


def test_a_convolution_that_is_called_twice_has_two_biases_and_one_weight():
    kernel = np.random.default_rng(3).normal(size=(4, 4, 3, 3)).astype(np.float32)
    text = "a = Conv<pads = [1, 1, 1, 1]>(x, k, b) r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, k, b) y = Relu(c)"
    graph = f"g (float[n, 4, 8, 8] x) => (float y) {{ {text} }}"
    model, before = (parse(graph, k=kernel, b=np.arange(4, dtype=np.float32) / 10) for _ in range(2))
    InsertQdq(rounding="gptq", calibrator=calibrator(model))(model)
    integers = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape) == 4]
    assert len(integers) == 1
    assert relative_error(before, model) < 0.05


def test_one_weight_that_two_linears_read_is_rounded_once():
    weight = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    text = "g (float[n, 4] x) => (float[n, 4] y) { p = MatMul(x, w) t = Tanh(p) y = MatMul(t, w) }"
    model, before = parse(text, w=weight), parse(text, w=weight)
    InsertQdq(rounding="gptq", calibrator=calibrator(model))(model)
    assert (
        sum(value.dtype == ir.DataType.INT8 and len(value.shape) == 2 for value in model.graph.initializers.values())
        == 1
    )
    assert relative_error(before, model) < 0.05


def test_a_reader_in_the_body_of_an_if_keeps_the_float_value():
    graph = """g (float[n, 4, 8, 8] x, bool c) => (float y) {
        a = Conv(x, k, b)
        y = If(c) <then_branch = t () => (float u) { u = Relu(a) }, else_branch = e () => (float w) { w = Neg(a) }>
    }"""
    model = parse(graph, k=KERNEL, b=np.arange(6, dtype=np.float32) / 10)
    data = [{"x": np.ones((1, 4, 8, 8), np.float32), "c": np.array(True)}]
    result = InsertQdq(calibrator=Calibrator(data, ObserveChannels, get("onnxruntime").open_session))(model)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(model))
    assert operators(model).count("QuantizeLinear") == 1


def test_a_bias_that_the_user_can_override_is_not_baked_in():
    model = convolution("c = Conv(x, k, b) y = Relu(c)")
    model.graph.inputs.append(model.graph.initializers["b"])
    data = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    InsertQdq(calibrator=Calibrator(data, ObserveChannels, get("onnxruntime").open_session))(model)
    assert next(node for node in model.graph if node.op_type == "Conv").inputs[2].name == "b"


def test_linear_of_a_vector():
    model = parse("g (float[4] x) => (float[6] y) { y = MatMul(x, w) }", w=WEIGHTS)
    assert "its input is a vector" in refused(model, InsertQdq(PER_TOKEN))
