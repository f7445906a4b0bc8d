"""Weights that no pass looks at are in the report, each once and with the reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.unlisted import unlisted
from tests.scaled_models import parse

X = "float[batch, sequence, 8] x"
FACTOR = "no pass of the recipe quantizes the weight of {}"


@pytest.mark.parametrize(
    ("weights", "body", "operator", "reason"),
    [
        (
            "float[1, 16, 8] w, float[1, 16, 4] wr",
            "t = LSTM<hidden_size = 4>(x, w, wr) y = Identity(t)",
            "LSTM",
            FACTOR,
        ),
        ("float[1, 12, 8] w, float[1, 12, 4] wr", "_, y = GRU<hidden_size = 4>(x, w, wr)", "GRU", FACTOR),
        (
            "float[1, 6, 8] w, float[1, 12, 4] wr",
            "u = Concat<axis = 1>(w, w) _, y = GRU<hidden_size = 4>(x, u, wr)",
            "GRU",
            FACTOR,
        ),
        ("float[2, 8, 4] w", "y = MatMul(x, w)", "Linear", "its weight has 3 axes: only matrices are quantized"),
        ("float[5, 7] w", "y = MatMul(w, x)", "Linear", "its weight is the first factor: only second ones"),
        ("float[8, 4] w", 'y = Einsum<equation = "bsi,io->bso">(x, w)', "Einsum", FACTOR),
        ("float[8, 4] w", "y = MatMul(x, w)", "Linear", FACTOR.format("MatMul")),
        ("float[8, 4] w", "a = Abs(w) b = Exp(a) y = MatMul(x, b)", "Linear", "its weight is computed from others"),
        (
            "float[9, 4] w",
            "i = Cast<to = 7>(x) y = Gather(w, i)",
            "Embedding",
            "no pass of the recipe stores its table",
        ),
        ("float[8, 4] w", "y = acme.Mix(x, w)", "Mix", FACTOR),
    ],
)
def test_each_kind_is_named_with_its_reason(weights, body, operator, reason):
    model = parse(f"{X}, {weights}", body)
    (found,) = unlisted(model, ())
    assert (found.action, found.operator) == ("kept", operator)
    assert found.reason.startswith(reason.format(operator))
    assert len(found.shape) > 1
    assert unlisted(model, {found.value}) == [], "what a pass has spoken of is not named again"


@pytest.mark.parametrize(
    "body",
    [
        "y = Add(x, w)",
        "y = LayerNormalization(x, v)",
        "t = Transpose(x) y = MatMul(x, t)",
        "q = Cast<to = 3>(w) d = DequantizeLinear(q, s) y = Mul(x, d)",
        "i = Cast<to = 7>(w) j = Cast<to = 7>(x) y = MatMul(j, i)",
    ],
)
def test_constants_that_are_no_weights_are_not_named(body):
    model = parse(f"{X}, float[8, 8] w, float[8] v, float s", body.replace("v)", "w_v)").replace("s)", "w_s)"))
    assert unlisted(model, ()) == []


def test_weights_of_another_type_are_named_with_it():
    model = parse(f"{X}, float[8, 4] w", "y = MatMul(x, w)")
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float16))
    weight.dtype = ir.DataType.FLOAT16
    (found,) = unlisted(model, ())
    assert found.reason == "its weight is float16: only float32 is quantized"


def test_what_is_quantized_already_is_named_as_that():
    body = "q = QuantizeLinear(w, w_s) d = DequantizeLinear(q, w_s) y = MatMul(x, d)"
    (found,) = unlisted(parse(f"{X}, float[8, 4] w, float w_s", body), ())
    assert found.reason == "it is already quantized"


def test_a_table_is_named_once_however_many_look_it_up():
    body = "i = Cast<to = 7>(x) a = Gather(w, i) b = Gather(w, i) y = Add(a, b)"
    model = parse(f"{X}, float[9, 4] w", body)
    assert unlisted(model, {"a"}) == []


def test_layers_of_branches_and_loops_are_named_with_what_they_are_inside_of():
    body = """
        s = ReduceSum<keepdims = 0>(x)  n = CastLike(s, s)  c = Greater(s, n)
        y = If(c) <then_branch = g () => (float[?, ?, ?] t) { t = MatMul(x, w) },
                   else_branch = h () => (float[?, ?, ?] e) { e = Abs(x) }>
    """
    model = parse(f"{X}, float[8, 8] w", body)
    (found,) = unlisted(model, ())
    assert (found.value, found.reason) == ("t", "it is inside of If: only what is outside is quantized")


class Mixed(torch.nn.Module):
    """Recurrent layers, a linear that is called twice, experts with one weight, a branch, a table, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(3000, 32)
        self.recurrent = torch.nn.LSTM(32, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.block = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.experts = torch.nn.Parameter(torch.randn(4, 32, 32) / 6)
        self.yes, self.no, self.twice, self.head = (torch.nn.Linear(32, size) for size in (32, 32, 32, 8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.block(self.recurrent(self.table(ids))[0])
        x = torch.matmul(x.unsqueeze(1), self.experts).mean(1)
        x = self.twice(torch.tanh(self.twice(x)))
        return self.head(torch.cond(x.sum() > 0, lambda v: self.yes(v) - 1, lambda v: self.no(v) + 1, (x,)))


def test_every_weight_of_a_model_is_in_the_report_once_and_rows_of_one_name_keep_their_own_figures():
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    data = [{"ids": generator.integers(0, 3000, (2, 6))} for _ in range(4)]
    report = qcompile.compile(Mixed().eval(), "w8a8-static", calibration=data, tune="none").report
    assert [(layer.operator, layer.action, layer.shape) for layer in report.layers] == [
        ("Embedding", "quantized", (3000, 32)),
        ("LSTM", "kept", (2, 64, 32)),
        ("LSTM", "kept", (2, 64, 32)),
        ("Linear", "quantized", (32, 96)),
        ("Linear", "quantized", (32, 32)),
        ("Linear", "quantized", (32, 48)),
        ("Linear", "quantized", (48, 32)),
        ("Linear", "kept", (4, 32, 32)),
        ("Linear", "quantized", (32, 32)),
        ("Linear", "quantized", (32, 32)),
        ("Linear", "kept", (32, 32)),
        ("Linear", "kept", (32, 32)),
        ("Linear", "quantized", (32, 8)),
    ]
    assert [layer.name for layer in report.layers[3:5]] == ["block.self_attn", "block.self_attn.out_proj"]
    rows = [layer for layer in report.layers if layer.name == "twice"]
    assert [layer.shape for layer in rows] == [(32, 32)] * 2
    assert rows[0].accumulated_db != rows[1].accumulated_db
    reasons = Counter(layer.reason for layer in report.layers if layer.action == "kept")
    assert sorted(reasons.values()) == [1, 2, 2]
