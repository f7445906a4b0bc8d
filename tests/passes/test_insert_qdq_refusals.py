"""InsertQdq: one case per refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import CalibrationError
from qcompile.passes.insert_qdq import InsertQdq
from tests.passes.quantizable import PER_TENSOR_DYNAMIC, PER_TOKEN, WEIGHTS, convolution, linear, operators, parse


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


def test_linear_of_a_vector():
    model = parse("g (float[4] x) => (float[6] y) { y = MatMul(x, w) }", w=WEIGHTS)
    assert "its input is a vector" in refused(model, InsertQdq(PER_TOKEN))
