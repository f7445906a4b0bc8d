"""Inputs that are indices: how large a number they may hold, and what is said of one that is too large."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.calibration_data import Calibration
from qcompile.calibration_indices import IndexLimit, index_limits
from qcompile.errors import CalibrationError

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def parse(body: str) -> ir.Model:
    model = ir.from_onnx_text(f"{HEADER} g {body}")
    for node in model.graph.all_nodes():
        node.name = f"{node.op_type} of {node.inputs[0].name if node.inputs[0] is not None else ''}"
    return model


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("(int64[n] i, float[9, 4] t) => (float[n, 4] y) { y = Gather(t, i) }", IndexLimit(9, "Gather of t")),
        (
            "(int64[n] i, float[9, 4] t) => (float[9, n] y) { y = Gather<axis = -1>(t, i) }",
            IndexLimit(4, "Gather of t"),
        ),
        (
            """(int64[n] i, float[9, 4] t, float[5, 4] u) => (float[n, 4] y)
            { p = Gather(t, i) q = Gather(u, i) y = Add(p, q) }""",
            IndexLimit(5, "Gather of u"),
        ),
        (
            """(int32[n, m] i, float[9, 4] t) => (float[m, n, 4] y)
            { c = Cast<to = 7>(i) s = Transpose(c) y = Gather(t, s) }""",
            IndexLimit(9, "Gather of t"),
        ),
        ("(int64[n] i, float[9, 4] t) => (float[n, 4] y) { j = Add(i, i) y = Gather(t, j) }", None),
        ("(int64[n] i, float[rows, 4] t) => (float[n, 4] y) { y = Gather(t, i) }", None),
        ("(int64[9] t, int64[n] i) => (int64[n] y) { r = Reshape(i, t) y = Neg(r) }", None),
        (
            """(int64[n] i, bool c, float[9, 4] t) => (float[n, 4] y) {
            y = If(c) <then_branch = a () => (float[n, 4] p) { p = Gather(t, i) },
                       else_branch = b () => (float[n, 4] q) { z = Sub(i, i) q = Gather(t, z) }> }""",
            None,
        ),
    ],
)
def test_the_limit_is_that_of_the_smallest_table(body, expected):
    model = parse(body)
    assert index_limits(model.graph.inputs).get("i") == expected
    assert set(index_limits(model.graph.inputs)) <= {"i"}


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = torch.nn.Embedding(16, 8), torch.nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.table(ids))


@pytest.mark.parametrize(("index", "number"), [(0, 16), (3, -17)])
@pytest.mark.parametrize("verify", [True, False])
def test_the_input_and_the_sample_are_named(index, number, verify):
    data = [{"ids": np.array([[1, 15, -16]])}] * 4
    data[index] = {"ids": np.array([[1, number, 3]])}
    with pytest.raises(CalibrationError) as caught:
        qcompile.compile(Encoder().eval(), "w8a8-static", calibration=data, verify=verify)
    assert caught.value.subject == f"input ids, calibration sample {index}"
    assert caught.value.reason == f"it holds {number}, and table takes it for an index into 16 rows"
    assert "Give 0 to 15" in caught.value.mend


def test_indices_inside_of_the_table_pass():
    model = parse("(int64[n] i, float[9, 4] t) => (float[n, 4] y) { y = Gather(t, i) }")
    data = [np.array([0, 8, -9])]
    assert len(list(Calibration(data).read(model.graph.inputs[:1]))) == 1
