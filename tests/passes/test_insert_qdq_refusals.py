"""InsertQdq: one case per refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime import BACKEND
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.scheme import ASYMMETRIC_UINT8
from tests.passes.quantizable import (
    KERNEL,
    PER_TENSOR_DYNAMIC,
    PER_TOKEN,
    WEIGHTS,
    convolution,
    linear,
    operators,
    parse,
)


def test_static_without_data_is_refused():
    with pytest.raises(CalibrationError, match="calibration data"):
        InsertQdq()(linear())


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


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_empty_kernel(operator):
    kernel = np.zeros((0, 4, 3, 3) if operator == "Conv" else (4, 0, 3, 3), np.float32)
    model = parse(f"g (float[n, 4, 9, 9] x) => (float[n, 0, ?, ?] y) {{ y = {operator}(x, k) }}", k=kernel)
    assert refused(model, InsertQdq(PER_TENSOR_DYNAMIC)) == "kept: its weight is empty"


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


@pytest.mark.parametrize(
    ("x", "activations", "reason"),
    [
        (0.0, ASYMMETRIC_UINT8, "its input is zero in all calibration data"),
        (1e-42, ASYMMETRIC_UINT8, "its input holds nothing but numbers that are 0, or too small"),
        (1e-42, PER_TOKEN, "its products with numbers up to 1e-42 are below the normal numbers"),
        (1e36, PER_TOKEN, "its sums of 4 products with numbers up to 1e+36 are beyond float32"),
    ],
)
def test_inputs_that_no_integers_stand_for(x, activations, reason):
    data = [{"x": np.full((3, 4), x, np.float32)}]
    calibrator = Calibrator(data, ObserveChannels, BACKEND.open_session)
    assert reason in refused(linear(), InsertQdq(activations, calibrator=calibrator))


def test_input_that_is_not_finite():
    model = parse(
        "g (float[n, 4] x) => (float[n, 6] y) { e = Log(x) y = MatMul(e, w) }", w=WEIGHTS
    )  # the logarithm of a negative number is NaN, which runtimes pass over in minima and maxima
    data = [{"x": np.array([[1, 2, 3, 4], [1, -1, 1, 1]], np.float32)}]
    calibrator = Calibrator(data, ObserveChannels, BACKEND.open_session)
    assert "its input holds NaN or infinity" in refused(model, InsertQdq(calibrator=calibrator))


def test_output_of_a_convolution_that_was_always_zero_is_not_quantized():
    model = convolution("c = Conv(x, k, b) r = Relu(c) y = MaxPool<kernel_shape = [2, 2]>(r)", -np.abs(KERNEL))
    data = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    InsertQdq(calibrator=Calibrator(data, ObserveChannels, BACKEND.open_session))(model)
    assert operators(model).count("QuantizeLinear") == 1  # of x


def test_linear_of_a_vector():
    model = parse("g (float[4] x) => (float[6] y) { y = MatMul(x, w) }", w=WEIGHTS)
    assert "its input is a vector" in refused(model, InsertQdq(PER_TOKEN))
