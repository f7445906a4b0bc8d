"""QuantizeAttention: q, k and v are quantized; refusals; no data no static scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_attention import QuantizeAttention
from qcompile.scheme import Scheme

HEADS = "float[2, 4, 6, 8]"
HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
ATTENTION = f"{HEADER} g ({HEADS} q, {HEADS} k, {HEADS} v) => ({HEADS} y) {{ y = Attention(q, k, v) }}"
PRODUCT = f"{HEADER} g ({HEADS} q, {HEADS} k) => (float y) {{ t = Transpose<perm = [0, 1, 3, 2]>(k) y = MatMul(q, t) }}"
PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
PER_TENSOR = Scheme("uint8", sym=False, dynamic=True)


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    ShapeInferencePass(strict_mode=False)(model)
    return model


def feed(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {v.name: generator.normal(size=(2, 4, 6, 8)).astype(np.float32) for v in model.graph.inputs}


def run(model: ir.Model) -> np.ndarray:
    return next(iter(get("onnxruntime").open_session(model, optimization="disabled").run(feed(model)).values()))


@pytest.mark.parametrize("text", [ATTENTION, PRODUCT])
@pytest.mark.parametrize("activations", [Scheme("uint8", sym=False), Scheme("int8"), PER_TOKEN, PER_TENSOR])
def test_operands_are_quantized(text, activations):
    model, before = parse(text), parse(text)
    calibrator = Calibrator([feed(model, seed) for seed in range(4)], ObserveChannels, get("onnxruntime").open_session)
    quantize = QuantizeAttention(activations, calibrator=calibrator)
    result = quantize(model)
    assert [(finding.action, finding.operator) for finding in result.findings] == [("quantized", "Attention")]
    product = model.graph[-1]
    assert all(
        value.producer().op_type in ("DequantizeLinear", "QuantizeDequantizePerToken") for value in product.inputs
    )
    assert 0 < np.linalg.norm(run(model) - run(before)) < 0.03 * np.linalg.norm(run(before))
    assert not quantize(model).modified


def test_the_last_operand_is_never_per_token():
    model = parse(ATTENTION)
    QuantizeAttention(PER_TOKEN)(model)
    kinds = [value.producer().op_type for value in model.graph[-1].inputs]
    assert kinds == ["QuantizeDequantizePerToken", "QuantizeDequantizePerToken", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        ({"operators": frozenset({"Linear"})}, "kept: the backend has no integer Attention with these schemes"),
        ({"ignore": frozenset({"y"})}, "ignored: the recipe leaves it out"),
    ],
)
def test_refusals(given, finding):
    result = QuantizeAttention(PER_TENSOR, **given)(parse(ATTENTION))
    assert not result.modified
    assert [f"{item.action}: {item.reason}" for item in result.findings] == [finding]


def test_a_linear_is_no_product_of_activations():
    text = f"{HEADER} g (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {{1, 2, 3, 4}}> {{ y = MatMul(x, w) }}"
    assert QuantizeAttention(PER_TENSOR)(parse(text)).findings == ()


def test_static_without_data_is_refused():
    with pytest.raises(CalibrationError, match="calibration data"):
        QuantizeAttention()(parse(ATTENTION))
