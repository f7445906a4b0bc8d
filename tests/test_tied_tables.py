"""One copy of a table for an embedding and a head: found by what it holds, and read by both."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qcompile
from qcompile.backends import get
from qcompile.block_weights import of_value
from qcompile.calibration import Calibrator
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.quantize_codebooks import QuantizeCodebooks
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.reference_evaluator import evaluate
from qcompile.scheme import GroupScheme
from tests.passes.quantizable import operators, parse
from tests.tied_models import IDS, ROWS, TEXT, rounded, table, tied


def integers(model: ir.Model) -> list[tuple[int, ...]]:
    """Shapes of the weights that are integers."""
    values = [value for value in model.graph.initializers.values() if value.shape is not None and len(value.shape) == 2]
    return [tuple(value.shape.numpy()) for value in values if value.dtype != ir.DataType.FLOAT]


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("channels", [128, 72, 40])
def test_both_read_one_copy(channels, bits):
    model = tied(channels, GroupScheme(bits, 64))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert integers(model) == [(ROWS, channels)]
    floats = [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    assert [tuple(value.shape.numpy()) for value in floats] == [(ROWS, -(-channels // 64))]
    kinds = [
        "Gather",
        "Cast",
        "Gather",
        "Gather",
        "Mul",
        "Tanh",
        "Transpose",
        "Transpose",
        "DequantizeLinear",
        "MatMul",
    ]
    assert sorted(operators(model)) == sorted(kinds)
    weight = rounded(channels, bits=bits)
    expected = np.tanh(weight[IDS]) @ weight.T
    for found in (evaluate(model, {"ids": IDS})["y"], get("onnxruntime").open_session(model).run({"ids": IDS})["y"]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert not QuantizeEmbeddings(min_elements=1)(model).modified


def test_the_weight_is_read_through_the_transpose():
    model = tied()
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    weight = of_value(product.inputs[1])
    assert (weight.inputs, weight.outputs, weight.block_size) == (128, ROWS, 64)
    np.testing.assert_array_equal(
        weight.integers.numpy() * np.repeat(weight.scales(64), 64, axis=0), rounded().T.astype(np.float32)
    )


@pytest.mark.parametrize("head", [GroupScheme(8, -1), GroupScheme(8, 64, sym=False), GroupScheme(4, 64, sym=False)])
def test_other_schemes_of_the_head_keep_their_own_copy(head):
    model = tied(head=head)
    assert set(integers(model)) >= {(128, ROWS), (ROWS, 128)}
    assert "Transpose" not in operators(model)


def test_another_table_of_the_same_shape_has_its_own_copy():
    other = np.ascontiguousarray(table().T)
    other[5, 7] += 0.5
    model = parse(TEXT, table=table(), head=other)
    QuantizeWeights()(model)
    QuantizeEmbeddings(min_elements=1)(model)
    assert set(integers(model)) >= {(128, ROWS), (ROWS, 128)}


def test_a_head_beside_weights_in_codebooks_shares_the_table_too():
    model = parse(TEXT, table=table(), head=np.ascontiguousarray(table().T))
    QuantizeCodebooks()(model)
    QuantizeEmbeddings(min_elements=1)(model)
    assert integers(model) == [(ROWS, 128)]


def test_what_gptq_makes_of_the_head_is_read_by_both():
    """Its integers are not the nearest ones, so that the table is found by what the pass says, not by its numbers."""
    model = parse(TEXT, table=table(), head=np.ascontiguousarray(table().T))
    calibrator = Calibrator([{"ids": IDS}], ObserveChannels, get("onnxruntime").open_session)
    QuantizeWeights(solver="gptq", head=GroupScheme(4, 64), calibrator=calibrator)(model)
    QuantizeEmbeddings(min_elements=1)(model)
    assert integers(model) == [(ROWS, 128)]
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    weight = of_value(product.inputs[1])
    values = (weight.integers.numpy() * np.repeat(weight.scales(64), 64, axis=0)).T
    assert not np.array_equal(values, rounded(bits=4))
    expected = np.tanh(values[IDS]) @ values.T
    np.testing.assert_allclose(evaluate(model, {"ids": IDS})["y"], expected, rtol=0, atol=1e-4)


def test_an_embedding_that_is_ignored_stays_float():
    model = parse(TEXT, table=table(), head=np.ascontiguousarray(table().T))
    QuantizeWeights()(model)
    name = QuantizeEmbeddings(min_elements=10**9)(model).findings[0].layer
    assert not QuantizeEmbeddings(1, frozenset({name}))(model).modified
    assert integers(model)[0] == (128, ROWS)


def test_the_float_file_that_is_compared_with_has_the_table_once(tmp_path):
    text = TEXT.replace("y = MatMul(x, head)", "head = Transpose<perm = [1, 0]>(table) y = MatMul(x, head)")
    model = parse(text, table=table())
    ir.save(model, tmp_path / "float.onnx")
    found = qcompile.compile(model, "w4a16-rtn", verify=False).report.size["float_bytes"]
    assert found == pytest.approx((tmp_path / "float.onnx").stat().st_size, abs=300)
    other = parse(TEXT, table=table(), head=table().T + 1)
    twice = qcompile.compile(other, "w4a16-rtn", verify=False).report.size["float_bytes"]
    assert twice == pytest.approx(found + table().nbytes, abs=300)
