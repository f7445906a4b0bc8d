"""The canonical form: the same operators from opset 18, where everything is decomposed, as from opset 23."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from qcompile.canonical import EliminateIdentities, canonical_passes
from qcompile.frontend import trace
from qcompile.graph import linears

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
}
COMPOSITE = ("LayerNormalization", "RMSNormalization", "Attention", "RotaryEmbedding", "Gelu")
DECOMPOSED = ("Softmax", "Erf", "Pow", "ReduceMean", "Neg", "Gemm", "Constant", "IsNaN")


def bert() -> torch.nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=64))


def llama() -> torch.nn.Module:
    return transformers.LlamaModel(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False))


def canonical(model: ir.Model) -> ir.Model:
    for item in canonical_passes():
        item(model)
    return model


@pytest.fixture(scope="module", params=[(bert, 13), (llama, 14)], ids=["bert", "llama"])
def exported(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, dict[int, ir.Model], int]:
    make, count = request.param
    torch.manual_seed(0)
    module = make().eval()
    ids = torch.randint(0, 256, (2, 7))
    axes = dict.fromkeys((0, 1), torch.export.Dim.AUTO)
    models = {}
    for opset in (18, 23):
        with torch.no_grad():
            program = torch.onnx.export(
                module,
                kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                dynamo=True,
                opset_version=opset,
                verbose=False,
            )
        models[opset] = canonical(trace(program.model))
    return module, models, count


def test_both_opsets_give_the_same_operators(exported) -> None:
    _, models, _ = exported
    counts = {opset: Counter(node.op_type for node in model.graph) for opset, model in models.items()}
    for operator in (*COMPOSITE, *DECOMPOSED):
        assert counts[18][operator] == counts[23][operator], operator
        assert operator in COMPOSITE or counts[23][operator] == 0, operator
    norm = "RMSNormalization" if counts[23]["RMSNormalization"] else "LayerNormalization"
    assert (counts[23][norm], counts[23]["Attention"]) == (5, 2)


def test_every_linear_is_recognised_under_its_name(exported) -> None:
    module, models, count = exported
    paths = {name for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
    for model in models.values():
        found = linears(model)
        assert len(found) == count
        assert {linear.name for linear in found} == paths


def test_the_canonical_form_computes_what_torch_does(exported) -> None:
    module, models, _ = exported
    ids = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = module(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    for model in models.values():
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        output = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_second_run_changes_nothing(exported) -> None:
    _, models, _ = exported
    for model in models.values():
        assert [type(item).__name__ for item in canonical_passes() if item(model).modified] == []


def test_every_value_has_a_type_and_a_shape(exported) -> None:
    _, models, _ = exported
    for model in models.values():
        assert all(
            value.dtype is not None and value.shape is not None for node in model.graph for value in node.outputs
        )


BRANCHES = """
<ir_version: 10, opset_import: ["" : 23]> g (float[4] x, bool c) => (float[4] y, float[4] p, float[4] q) {
    a = Relu(x) i = Identity(a) p = Identity(i) q = Identity(i)
    y = If (c) <
        then_branch = t () => (float[4] e) { e = Identity(a) },
        else_branch = f () => (float[4] d) { n = Neg(a) m = Identity(n) d = Identity(m) }
    >
}
"""


def test_identities_go_where_their_graph_makes_the_value() -> None:
    model = ir.from_onnx_text(BRANCHES)
    feed = {"x": np.array([-1, 2, 3, 4], np.float32), "c": np.array(True)}
    expected = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed)
    assert EliminateIdentities()(model).modified
    assert not EliminateIdentities()(model).modified
    assert [node.op_type for node in model.graph] == ["Relu", "Identity", "If"]
    branches = [attribute.as_graph() for attribute in model.graph[2].attributes.values()]
    assert [[node.op_type for node in branch] for branch in branches] == [["Identity"], ["Neg"]]
    actual = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feed)
    np.testing.assert_array_equal(actual, expected)
