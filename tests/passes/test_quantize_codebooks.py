"""QuantizeCodebooks: the canonical form of a weight in NF4, which layers get it, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.backends import BACKENDS, get
from qcompile.calibration import Calibrator
from qcompile.errors import RecipeError, UnsupportedError
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from qcompile.solvers.nf4 import NF4, double_quantized, nf4
from tests.passes.quantizable import calibrator, linear, operators, parse, run

WEIGHT = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)


def model(text: str = "y = MatMul(x, w)", **weights: np.ndarray) -> ir.Model:
    return parse(f"g (float[n, 40] x) => (float y) {{ {text} }}", **(weights or {"w": WEIGHT}))


def codebook(found: ir.Model) -> ir.Node:
    (node,) = [node for node in found.graph if node.op_type == "DequantizeCodebook"]
    return node


def test_a_weight_becomes_indices_into_the_levels_with_a_scale_for_each_group():
    after = model()
    result = QuantizeCodebooks(16)(after)
    assert operators(after) == ["DequantizeCodebook", "MatMul"]
    node, expected = codebook(after), nf4(WEIGHT, 16)
    assert [value.dtype for value in node.inputs] == [ir.DataType.UINT4, ir.DataType.FLOAT, ir.DataType.FLOAT]
    for value, array in zip(node.inputs, (expected.indices, NF4, expected.scale), strict=True):
        np.testing.assert_array_equal(value.const_value.numpy(), array)
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (0, 16)
    np.testing.assert_array_equal(run(after, np.eye(40, dtype=np.float32)), expected.weight(16))
    assert "w" not in after.graph.initializers
    assert [finding.action for finding in result.findings] == ["quantized"]
    assert not QuantizeCodebooks(16)(after).modified


def test_scales_are_quantized_themselves_output_by_output():
    after = model()
    QuantizeCodebooks(4, double_quantization=True)(after)
    assert operators(after) == ["DequantizeScale", "DequantizeCodebook", "MatMul"]
    found = nf4(WEIGHT, 4)
    scales = double_quantized(np.ascontiguousarray(found.scale.T))
    assert len(scales.scale) == 1
    node = after.graph[0]
    np.testing.assert_array_equal(node.inputs[0].const_value.numpy(), scales.indices.reshape(24, 10).T)
    expected = NF4[found.indices] * np.repeat(scales.values().reshape(24, 10).T, 4, axis=0)
    np.testing.assert_allclose(run(after, np.eye(40, dtype=np.float32)), expected, rtol=1e-6)


def test_one_group_is_a_scale_for_each_output():
    after = model()
    QuantizeCodebooks(-1)(after)
    assert tuple(codebook(after).inputs[2].shape) == (1, 24)
    np.testing.assert_array_equal(run(after, np.eye(40, dtype=np.float32)), nf4(WEIGHT, 40).weight(40))


def test_a_bias_stays_and_tied_weights_are_quantized_once():
    after = linear()
    QuantizeCodebooks()(after)
    assert operators(after) == ["DequantizeCodebook", "MatMul", "Add"]
    after = model("a = MatMul(x, w) b = Relu(x) c = MatMul(b, w) y = Add(a, c)")
    result = QuantizeCodebooks()(after)
    assert operators(after).count("DequantizeCodebook") == 1
    assert [finding.value for finding in result.findings] == ["a", "c"]


@pytest.mark.parametrize("double_quantization", [False, True])
def test_the_loss_of_each_layer_is_measured_on_calibration_data(double_quantization):
    after, before = model(), model()
    (finding,) = QuantizeCodebooks(8, double_quantization, calibrator=calibrator(after))(after).findings
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(size=(5, 40)) for _ in range(8)]).astype(np.float32)
    noise = run(before, x) - run(after, x)
    expected = 10 * np.log10(np.square(run(before, x)).sum() / np.square(noise).sum())
    assert finding.sqnr_db == pytest.approx(expected, abs=0.01)


def test_what_rounding_adds_on_average_is_taken_off_the_bias():
    rows = (np.random.default_rng(0).normal(size=(8, 50, 40)) + 2).astype(np.float32)
    data = Calibrator([{"x": each} for each in rows], ObserveChannels, get("onnxruntime").open_session)
    rows, errors = rows.reshape(-1, 40), []
    for how in ("none", "linears"):
        after = model("p = MatMul(x, w) y = Add(p, b)", w=WEIGHT, b=np.ones(24, np.float32))
        QuantizeCodebooks(16, bias_correction=how, calibrator=data)(after)
        errors.append(np.square(run(after, rows) - (rows @ WEIGHT + 1)).sum())
    assert errors[1] < 0.7 * errors[0]


def test_a_linear_that_writes_a_vocabulary_has_its_own_scheme():
    wide = np.random.default_rng(0).normal(size=(40, 80)).astype(np.float32)
    after = model("y = MatMul(x, v)", v=wide)
    QuantizeCodebooks()(after)
    assert operators(after) == ["DequantizeLinear", "MatMul"]
    assert after.graph[0].inputs[0].dtype == ir.DataType.INT8
    after = model("y = MatMul(x, v)", v=wide)
    QuantizeCodebooks(head=None)(after)
    assert operators(after) == ["DequantizeCodebook", "MatMul"]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((40, 3), np.nan, np.float32), "its weight holds NaN or infinity"),
        (np.zeros((40, 0), np.float32), "its weight is empty"),
    ],
)
def test_refusals(weight, reason):
    result = QuantizeCodebooks()(model(w=weight))
    assert not result.modified
    assert [(finding.action, finding.reason) for finding in result.findings] == [("kept", reason)]


def test_layers_that_are_left_out():
    assert [f.action for f in QuantizeCodebooks(ignore=frozenset({"y"}))(model()).findings] == ["ignored"]
    result = QuantizeCodebooks(operators=frozenset({"Conv"}))(model())
    assert [finding.action for finding in result.findings] == ["kept"]
    assert not result.modified


def test_what_cannot_be():
    with pytest.raises(RecipeError, match="group_size must be"):
        QuantizeCodebooks(0)
    old = model()
    old.opset_imports[""] = old.graph.opset_imports[""] = 20
    with pytest.raises(UnsupportedError, match="opset 21"):
        QuantizeCodebooks()(old)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["nf4", "nf4-dq"])
@pytest.mark.parametrize("inputs", [64, 33])
def test_both_backends_compile_and_verify(recipe: str, backend: str, inputs: int, tmp_path: Path):
    generator = np.random.default_rng(0)
    first, second = (
        (generator.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in ((inputs, 96), (96, 40))
    )
    text = f"g (float[n, {inputs}] x) => (float y) {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}"
    samples = [{"x": generator.normal(size=(5, inputs)).astype(np.float32)} for _ in range(4)]
    source = ir.to_proto(parse(text, w=first, v=second))
    artifact = qcompile.compile(source, recipe=recipe, backend=backend, calibration=samples, output=tmp_path / "out")
    x = samples[0]["x"]
    expected = np.maximum(x @ first, 0) @ second
    error = np.linalg.norm(artifact(x=x)["y"] - expected) / np.linalg.norm(expected)
    assert 0.01 < error < 0.2  # 4 bits of normal numbers: 0.09 of each weight
