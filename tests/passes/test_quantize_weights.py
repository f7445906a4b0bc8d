"""QuantizeWeights: the canonical form of a weight in groups, which layers get it, and what is said of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import RecipeError
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.scheme import GroupScheme
from qcompile.solvers.rtn import rtn
from tests.passes.quantizable import calibrator, linear, operators, parse, relative_error, run

WEIGHT = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)


def model(text: str = "y = MatMul(x, w)", **weights: np.ndarray) -> ir.Model:
    return parse(f"g (float[n, 40] x) => (float y) {{ {text} }}", **(weights or {"w": WEIGHT}))


def dequantizer(found: ir.Model) -> ir.Node:
    (node,) = [node for node in found.graph if node.op_type == "DequantizeLinear"]
    return node


@pytest.mark.parametrize(
    ("bits", "sym", "dtype"),
    [
        *[(2, True, ir.DataType.INT4), (4, True, ir.DataType.INT4), (8, True, ir.DataType.INT8)],
        *[(3, False, ir.DataType.UINT4), (5, False, ir.DataType.UINT8)],
    ],
)
def test_a_weight_becomes_integers_with_a_scale_for_each_group(bits, sym, dtype):
    after = model()
    result = QuantizeWeights(bits, 16, sym)(after)
    assert operators(after) == ["DequantizeLinear", "MatMul"]
    node = dequantizer(after)
    assert [value.dtype for value in node.inputs] == [dtype, ir.DataType.FLOAT, dtype]
    assert [tuple(value.shape) for value in node.inputs] == [(40, 24), (3, 24), (3, 24)]
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (0, 16)
    integers = node.inputs[0].const_value.numpy().astype(np.int8)
    smallest, largest = GroupScheme(bits, 16, sym).range
    assert integers.min() == smallest
    assert smallest < integers.max() <= largest
    x = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)
    expected = rtn(WEIGHT, GroupScheme(bits, 16, sym)).weight(16)
    np.testing.assert_allclose(run(after, x), x @ expected, atol=1e-5)
    assert "w" not in after.graph.initializers
    assert [finding.action for finding in result.findings] == ["quantized"]
    assert not QuantizeWeights(bits, 16, sym)(after).modified


def test_one_group_is_a_scale_for_each_output():
    before, after = model(), model()
    QuantizeWeights(8, -1)(after)
    node = dequantizer(after)
    assert [tuple(value.shape) for value in node.inputs] == [(40, 24), (24,), (24,)]
    assert node.attributes.get_int("axis") == 1
    assert "block_size" not in node.attributes
    assert relative_error(before, after) < 0.01


def test_a_bias_stays():
    after = linear()
    QuantizeWeights()(after)
    assert operators(after) == ["DequantizeLinear", "MatMul", "Add"]


def test_tied_weights_are_quantized_once():
    after = model("a = MatMul(x, w) b = Relu(x) c = MatMul(b, w) y = Add(a, c)")
    result = QuantizeWeights()(after)
    assert operators(after).count("DequantizeLinear") == 1
    assert [finding.action for finding in result.findings] == ["quantized", "quantized"]
    assert [finding.value for finding in result.findings] == ["a", "c"]


def test_the_loss_of_each_layer_is_measured_on_calibration_data():
    after = model()
    (finding,) = QuantizeWeights(4, 8, calibrator=calibrator(after))(after).findings
    generator, before = np.random.default_rng(0), model()
    x = np.concatenate([generator.normal(size=(5, 40)) for _ in range(8)]).astype(np.float32)
    noise = run(before, x) - run(after, x)
    expected = 10 * np.log10(np.square(run(before, x)).sum() / np.square(noise).sum())
    assert finding.sqnr_db == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("text", "outputs", "bits"),
    [
        ("y = MatMul(x, v)", 80, 8),
        ("a = MatMul(x, v) b = Tanh(a) two = Constant<value_float = 2.0>() y = Mul(b, two)", 80, 8),
        ("y = MatMul(x, v)", 79, 4),
        ("a = MatMul(x, v) y = Softmax(a)", 80, 4),
    ],
)
def test_a_linear_that_writes_a_vocabulary_has_its_own_scheme(text, outputs, bits):
    after = parse(
        f"g (float[n, 40] x) => (float y) {{ {text} }}",
        v=np.random.default_rng(0).normal(size=(40, outputs)).astype(np.float32),
    )
    QuantizeWeights()(after)
    assert dequantizer(after).inputs[0].dtype == (ir.DataType.INT8 if bits == 8 else ir.DataType.INT4)


def test_the_table_of_an_embedding_has_the_scheme_of_a_vocabulary():
    table = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    text = "e = Gather(t, ids) a = MatMul(e, v) b = Relu(a) y = MatMul(b, u)"
    after = parse(
        f"g (int64[n] ids) => (float y) {{ {text} }}",
        t=table,
        v=np.ascontiguousarray(table.T),
        u=WEIGHT[:1].repeat(50, 0),
    )
    QuantizeWeights()(after)
    found = [node.inputs[0] for node in after.graph if node.op_type == "DequantizeLinear"]
    assert [value.dtype for value in found] == [ir.DataType.INT8, ir.DataType.INT4]


def test_without_a_scheme_of_its_own_a_vocabulary_is_as_the_others():
    after = model("y = MatMul(x, v)", v=np.random.default_rng(0).normal(size=(40, 90)).astype(np.float32))
    QuantizeWeights(head=None)(after)
    assert dequantizer(after).inputs[0].dtype == ir.DataType.INT4


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (np.full((40, 3), np.nan, np.float32), "its weight holds NaN or infinity"),
        (np.zeros((40, 0), np.float32), "its weight is empty"),
    ],
)
def test_refusals(weight, reason):
    result = QuantizeWeights()(model(w=weight))
    assert not result.modified
    assert [(finding.action, finding.reason) for finding in result.findings] == [("kept", reason)]


def test_layers_that_are_left_out():
    name = QuantizeWeights()(model()).findings[0].layer
    assert [f.action for f in QuantizeWeights(ignore=frozenset({name}))(model()).findings] == ["ignored"]
    result = QuantizeWeights(operators=frozenset({"Conv"}))(model())
    assert [(f.action, f.reason) for f in result.findings] == [
        ("kept", "the backend has no integer Linear with these schemes")
    ]
    assert not result.modified


@pytest.mark.parametrize("settings", [{"bits": 9}, {"bits": 0}, {"group_size": 0}, {"group_size": -2}])
def test_settings_out_of_range(settings):
    with pytest.raises(RecipeError, match=r"bits must be|group_size must be"):
        QuantizeWeights(**settings)
