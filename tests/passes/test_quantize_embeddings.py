"""QuantizeEmbeddings: the table is int8 in the file, and the rows are dequantized behind the Gather."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile import qdq
from qcompile.backends import get
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings

TABLE = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32) * np.geomspace(0.01, 10, 50)[:, None].astype(
    np.float32
)


def parse(text: str, table: np.ndarray = TABLE) -> ir.Model:
    rows = ", ".join(str(float(number)) for number in table.ravel())
    shape = ", ".join(map(str, table.shape))
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 23]>\n'
        f"g (int64[n] ids) => (float[n, 16] y) <float[{shape}] table = {{{rows}}}> {{ {text} }}"
    )


def test_rows_are_gathered_as_integers():
    model = parse("y = Gather(table, ids)")
    result = QuantizeEmbeddings(min_elements=1)(model)
    assert [node.op_type for node in model.graph] == ["Gather", "Cast", "Gather", "Mul"]
    assert result.findings[0].action == "quantized"
    assert result.findings[0].sqnr_db > 40
    assert "table" not in model.graph.initializers
    ids = np.arange(50)
    actual = get("onnxruntime").open_session(model).run({"ids": ids})["y"]
    np.testing.assert_array_less(np.abs(actual - TABLE).max(axis=1), np.abs(TABLE).max(axis=1) / 127)
    assert not QuantizeEmbeddings(min_elements=1)(model).modified


def test_a_table_that_is_rounded_some_rows_at_a_time_is_the_same(monkeypatch):
    whole, pieces = parse("y = Gather(table, ids)"), parse("y = Gather(table, ids)")
    expected = QuantizeEmbeddings(min_elements=1)(whole).findings[0].sqnr_db
    monkeypatch.setattr("qcompile.passes.quantize_embeddings._ELEMENTS", 3 * 16)  # the last piece has 2 rows of 50
    assert QuantizeEmbeddings(min_elements=1)(pieces).findings[0].sqnr_db == pytest.approx(expected, rel=1e-12)
    for name in ("table.quantized", "table.scale"):
        first, second = (model.graph.initializers[name].const_value.numpy() for model in (whole, pieces))
        np.testing.assert_array_equal(first, second)


def test_one_table_that_two_gathers_read_is_quantized_once():
    model = parse("a = Gather(table, ids) b = Gather(table, ids) y = Add(a, b)")
    result = QuantizeEmbeddings(min_elements=1)(model)
    assert [finding.action for finding in result.findings] == ["quantized"]
    assert sum(value.dtype == ir.DataType.INT8 for value in model.graph.initializers.values()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g = Gather(table, ids) r = ReduceSum(table) y = Add(g, r)", "something else reads its table"),
        ("g = Gather<axis = 1>(table, ids) y = Transpose(g)", "something else reads its table"),
    ],
)
def test_refusals_by_dataflow(text, reason):
    result = QuantizeEmbeddings(min_elements=1)(parse(text))
    assert not result.modified
    assert [finding.reason for finding in result.findings] == [reason]


def test_small_table_is_kept():
    result = QuantizeEmbeddings(min_elements=801)(parse("y = Gather(table, ids)"))
    assert not result.modified
    assert result.findings[0].reason == "its table has only 800 elements"


def test_ignored_table():
    model = parse("y = Gather(table, ids)")
    name = QuantizeEmbeddings(min_elements=10**9)(model).findings[0].layer
    assert QuantizeEmbeddings(1, frozenset({name}))(model).findings[0].action == "ignored"


def test_table_that_the_backend_does_not_store_in_8_bits():
    result = QuantizeEmbeddings(1, operators=frozenset({"Linear"}))(parse("y = Gather(table, ids)"))
    assert not result.modified
    assert [(finding.action, finding.reason) for finding in result.findings] == [
        ("kept", "the backend has no integer Embedding with these schemes")
    ]


def test_table_that_is_not_finite():
    model = parse("y = Gather(table, ids)")
    broken = TABLE.copy()
    broken[3, 3] = np.inf
    model.graph.initializers["table"].const_value = ir.tensor(broken, name="table")
    assert QuantizeEmbeddings(1)(model).findings[0].reason == "its table holds NaN or infinity"


def test_the_rows_can_be_quantized_themselves():
    """Both write h.scale and h.quantized: the embedding for its rows, the linear behind it for its input."""
    model = parse("h = Gather(table, ids) y = Relu(h)")
    QuantizeEmbeddings(min_elements=1)(model)
    relu = model.graph[-1]
    new, _ = qdq.quantize_dequantize(relu.inputs[0], np.float32(0.1), np.uint8(128), relu)
    qdq.replace_input(relu, relu.inputs[0], new)
    onnx.checker.check_model(ir.to_proto(model))
    get("onnxruntime").open_session(model).run({"ids": np.arange(50)})
