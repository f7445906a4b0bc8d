"""InsertQdq on linears: exact operators, numerics within what the scales allow."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.scheme import Scheme
from tests.passes.quantizable import (
    KERNEL,
    PER_TENSOR_DYNAMIC,
    PER_TOKEN,
    WEIGHTS,
    calibrator,
    linear,
    operators,
    parse,
    relative_error,
    run,
)


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


@pytest.mark.parametrize("activations", [Scheme("uint8", sym=False), PER_TOKEN])
def test_what_is_computed_from_constants_is_not_quantized_and_its_linear_has_a_quantized_weight(activations):
    body = "c = Relu(k) p = MatMul(c, w) q = MatMul(x, v) y = Add(p, q)"
    text = f"g (float[n, 4] x) => (float[n, 6] y) {{ {body} }}"
    model = parse(text, k=WEIGHTS[:1, :4], w=WEIGHTS, v=-2 * WEIGHTS)
    findings = InsertQdq(activations, calibrator=calibrator(model))(model).findings
    assert [finding.action for finding in findings] == ["quantized", "quantized"]
    fixed, computed = (node for node in model.graph if node.op_type == "MatMul")
    assert [value.producer().op_type for value in fixed.inputs] == ["Relu", "DequantizeLinear"]
    assert computed.inputs[0].producer().op_type in ("DequantizeLinear", "QuantizeDequantizePerToken")


def test_tied_weights_stay_one_initializer():
    text = "g (float[n, 4] x) => (float[n, 6] y) { p = MatMul(x, w) r = Relu(x) q = MatMul(r, w) y = Add(p, q) }"
    model = parse(text, w=WEIGHTS)
    InsertQdq(calibrator=calibrator(model))(model)
    integers = [value for value in model.graph.initializers.values() if value.shape == [4, 6]]
    assert [value.dtype for value in integers] == [ir.DataType.INT8]


def test_a_constant_activation_is_quantized():
    model, data = linear(), [{"x": np.full((3, 4), 7, np.float32)}]
    InsertQdq(calibrator=Calibrator(data, ObserveChannels, get("onnxruntime").open_session))(model)
    assert model.graph.initializers["x.scale"].const_value.numpy() == np.float32(7 / 255)
    np.testing.assert_allclose(run(model, data[0]["x"]), data[0]["x"] @ WEIGHTS + np.arange(6), atol=0.5)


def test_seven_bits_stay_in_63():
    model = linear()
    InsertQdq(weights=Scheme("int8", "per_channel", bits=7), calibrator=calibrator(model))(model)
    quantized = model.graph.initializers["w.quantized"].const_value.numpy()
    assert np.abs(quantized).max() == 63


def test_without_calibration_a_dynamic_recipe_rounds_to_nearest():
    quantize = InsertQdq(PER_TOKEN, rounding="gptq")
    assert quantize.without_calibration() == dataclasses.replace(quantize, rounding="nearest")
    assert InsertQdq().without_calibration() == InsertQdq()


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
