"""Which layers a recipe is about, and what is said when none is left or none is of its operators."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.compile_selection import ignored_layers
from qcompile.errors import NothingMatchedError, RecipeError
from tests.textual_models import model_of, weights


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(512, 128)
        self.up = torch.nn.Linear(128, 128)
        self.down = torch.nn.Linear(128, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(torch.relu(self.up(self.table(ids))))))


IDS = np.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def block() -> ir.Model:
    return qcompile.trace(Block().eval(), example_inputs=torch.from_numpy(IDS))


@pytest.mark.parametrize(
    ("given", "quantized"),
    [
        ({"ignore": ["table"]}, {"up", "down"}),
        ({"targets": ["up"]}, {"up"}),
        ({"targets": ["table"]}, {"table"}),
        ({"ignore": ["re:.*able"], "targets": ["up", "table"]}, {"up"}),
    ],
)
def test_patterns_reach_embeddings_too(block, given, quantized):
    report = qcompile.compile(block, verify=False, **given).report
    assert {layer.name for layer in report.layers if layer.action == "quantized"} == quantized
    assert {layer.name for layer in report.layers if layer.action == "ignored"} == {"table", "up", "down"} - quantized


def test_every_node_of_a_module_that_is_called_twice_can_be_named(block):
    nodes = [str(node.name) for node in block.graph if node.op_type == "MatMul"]
    assert len(nodes) == 3
    for node, layer in zip(nodes, ("up", "up", "down"), strict=True):
        assert ignored_layers(block, qcompile.Recipe("r", ignore=(node,))) == {layer}
    with pytest.raises(RecipeError, match="no layer has this name"):
        ignored_layers(block, qcompile.Recipe("r", ignore=("tabel",)))


def test_what_stays_float_anyway_can_be_named_too():
    body = "_, h = RNN<hidden_size = 4>(x, w, r) z = Squeeze(h) y = MatMul(z, f)"
    model = model_of(
        f"g (float[s, b, 8] x) => (float[?, ?] y) {{ {body} }}", w=weights(1, 4, 8), r=weights(1, 4, 4), f=weights(4, 2)
    )
    recurrent, _, head = model.graph
    recurrent.name, head.name = "recurrent", "head"
    assert ignored_layers(model, qcompile.Recipe("r", ignore=("recurrent",))) == {"recurrent"}
    assert ignored_layers(model, qcompile.Recipe("r", targets=("head",))) == {"recurrent"}


def test_an_embedding_that_two_gathers_read_can_be_named_by_either():
    body = "g (int64[b] i, int64[b] j) => (float[b, 8] y) { p = Gather(w, i) q = Gather(w, j) y = Add(p, q) }"
    model = model_of(body, w=weights(16, 8))
    for node, name in zip(list(model.graph)[:2], ("first", "second"), strict=True):
        node.name = name
    for name in ("first", "second"):
        assert ignored_layers(model, qcompile.Recipe("r", ignore=(name,))) == {"first"}


def test_attention_can_be_named():
    model = model_of("g (float[1, 2, 4, 8] x) => (float[1, 2, 4, 8] y) { y = Attention(x, x, x) }")
    model.graph[0].name = "heads"
    assert ignored_layers(model, qcompile.Recipe("r", ignore=("heads",))) == {"heads"}


@pytest.mark.parametrize("compiles", [qcompile.compile, qcompile.rewrite])
@pytest.mark.parametrize(
    ("given", "subject", "reason"),
    [
        ({"ignore": ["up"], "targets": "up"}, "ignore and targets", "together they leave nothing .*; both select up$"),
        ({"ignore": ["re:.*"]}, "ignore", "^it leaves nothing of 3 layers to quantize$"),
        (
            {"ignore": "re:.*", "targets": "re:.*"},
            "ignore and targets",
            "^together they leave nothing of 3 layers to quantize; both select table, up, down$",
        ),
    ],
)
def test_patterns_that_leave_nothing_are_refused(block, compiles, given, subject, reason):
    with pytest.raises(RecipeError, match="use recipe float") as caught:
        compiles(block, "w8a8-dynamic", verify=False, **given)
    assert caught.value.subject == subject
    assert re.search(reason, caught.value.reason)


def test_a_recipe_that_does_not_quantize_what_is_left_is_refused(block):
    ids = [{"ids": IDS}]
    with pytest.raises(RecipeError, match="targets: it leaves nothing of 2 layers to quantize"):
        qcompile.compile(block, "smoothquant-o3", calibration=ids, targets=["table"])


def test_a_recipe_that_quantizes_nothing_may_leave_everything_out(block):
    report = qcompile.compile(block, "float", verify=False, ignore=["re:.*"]).report
    assert not any(layer.action == "quantized" for layer in report.layers)


CONVOLUTION = "g (float[b, 8, 6, 6] x) => (float[b, 8, 4, 4] y) { y = Conv(x, w) }"
TRANSPOSED = "g (float[b, 8, 6, 6] x) => (float[b, 8, 8, 8] y) { y = ConvTranspose(x, w) }"


@pytest.mark.parametrize(
    ("body", "recipe", "backend", "reason", "mend"),
    [
        (CONVOLUTION, "w8a8-dynamic", "onnxruntime", "Embedding and Linear, .* none of them but 1 Conv", "w8a8-static"),
        (CONVOLUTION, "w8a8-dynamic", "openvino", "Embedding and Linear", "Use w8a8-static or smoothquant-o3"),
        (CONVOLUTION, "smoothquant-o1", "onnxruntime", "it quantizes Linear, and", "Use w8a8-static"),
        (TRANSPOSED, "w8a8-static", "onnxruntime", "Conv and Embedding and Linear", "no recipe quantizes these here"),
        (TRANSPOSED, "w8a8-static", "openvino", "Conv and Embedding and Linear", "Use smoothquant-o3"),
    ],
)
def test_a_recipe_without_an_operator_of_the_model_names_one_that_has_it(body, recipe, backend, reason, mend):
    model = model_of(body, w=weights(8, 8, 3, 3))
    with pytest.raises(NothingMatchedError) as caught:
        qcompile.compile(model, recipe, backend=backend, calibration=[weights(1, 8, 6, 6)])
    assert caught.value.subject == f"recipe {recipe}"
    assert re.search(reason, caught.value.reason)
    assert mend in caught.value.mend


def test_rewriting_asks_what_the_recipe_quantizes_on_any_backend():
    model = model_of(TRANSPOSED, w=weights(8, 8, 3, 3))
    with pytest.raises(NothingMatchedError, match=r"1 ConvTranspose\. Use w8a8-static"):
        qcompile.rewrite(model, "w8a8-dynamic")
    rewritten = qcompile.rewrite(model, "w8a8-static", calibration=[weights(1, 8, 6, 6)])
    assert "QuantizeLinear" in {node.op_type for node in rewritten.graph}
