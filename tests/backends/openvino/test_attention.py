from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino.attention import decompose_attention
from qcompile.backends.openvino.masks import effective_mask
from tests.backends.openvino.graphs import converted, operators, run
from tests.backends.portable import attention_case, decoder_case, parse, reference

FUSED = "ScaledDotProductAttention"


def attention(mask: str, arguments: str, attributes: str = "", body: str = "") -> ir.Model:
    heads = ", ".join(f"float[N,2,S,8] {name}" for name in "qkv")
    return parse(
        f"""({heads}{mask}) => (float[N,2,S,8] y)
        {{
            {body}
            y = Attention {attributes} (q, k, v{arguments})
        }}""",
        zero=np.array(0),
        one=np.array(1),
        five=np.array(5),
        three=np.array(3),
        tall=np.array([1, 1, 5, 1]),
    )


def feed(**others: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((2, 2, 5, 8)).astype(np.float32) for name in "qkv"} | others


PADDING = (np.arange(5) < np.array([[5], [3]]))[:, None, None, :]


def test_boolean_mask_becomes_an_addend() -> None:
    case = attention_case()
    model = converted(case.model)
    decompose_attention(model)
    counts = operators(model)
    assert counts[FUSED] == counts["IsNaN"] == 0
    assert counts["MatMul"] == 2
    assert counts["Softmax"] == 1
    expected = reference(case.model, case.feed)["y"]
    np.testing.assert_allclose(run(model, case.feed)["y"], expected, rtol=0, atol=1e-5)
    decompose_attention(model)
    assert operators(model) == counts


@pytest.mark.parametrize(("attributes", "scale"), [("", 8**-0.5), ("<scale = 0.5>", 0.5)])
def test_without_a_mask(attributes: str, scale: float) -> None:
    model = converted(attention("", "", attributes))
    decompose_attention(model)
    assert operators(model)[FUSED] == 0
    assert operators(model)["Add"] == 0
    values = feed()
    scores = np.einsum("nhqd,nhkd->nhqk", values["q"], values["k"]).astype(np.float64) * scale
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("nhqk,nhkd->nhqd", weights, values["v"])
    np.testing.assert_allclose(run(model, values)["y"], expected, rtol=0, atol=1e-5)


def test_mask_of_several_layers_is_made_once() -> None:
    model = converted(attention(", bool[N,1,S,S] mask", ", mask", body="h = Attention (q, k, v, mask)").clone())
    decompose_attention(model)
    assert operators(model)["Select"] == 1


def test_row_without_a_key_is_finite() -> None:
    model = converted(attention(", bool[N,1,S,S] mask", ", mask"))
    decompose_attention(model)
    mask = np.repeat(PADDING, 5, axis=2)
    mask[1, 0, 4] = False
    result = run(model, feed(mask=mask))["y"]
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[1, :, 4], feed()["v"][1].mean(axis=1), rtol=0, atol=1e-5)


def test_causal_attention_and_masks_of_numbers_stay() -> None:
    for model in (decoder_case().model, attention(", float[N,1,S,S] mask", ", mask")):
        result = converted(model)
        before = operators(result)
        decompose_attention(result)
        assert operators(result) == before
        assert before[FUSED] == 1


def test_constant_addend_stays() -> None:
    model = attention(", float[5,5] given", ", given")
    bias = np.zeros((5, 5), np.float32)
    bias[0, 1] = -np.inf
    model.graph.register_initializer(ir.val("addend", const_value=ir.tensor(bias, name="addend")))
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.replace_input_with(3, model.graph.initializers["addend"])
    result = converted(model)
    before = operators(result)
    decompose_attention(result)
    assert operators(result) == before
    assert before[FUSED] == 1


def test_attention_over_a_cache_stays() -> None:
    cache = ", bool[N,1,S,T] mask, float[N,2,P,8] past_k, float[N,2,P,8] past_v"
    text = """({heads}{cache}) => (float[N,2,S,8] y)
    {{
        all_k = Concat <axis = 2> (past_k, k)
        all_v = Concat <axis = 2> (past_v, v)
        y = Attention (q, all_k, all_v, mask)
    }}"""
    heads = ", ".join(f"float[N,2,S,8] {name}" for name in "qkv")
    result = converted(parse(text.format(heads=heads, cache=cache)))
    decompose_attention(result)
    assert operators(result)[FUSED] == 1


POSITIONS = """
    positions = Range (zero, five, one)
    column = Reshape (positions, tall)
    hides_nothing = GreaterOrEqual (column, {bound})
    both = And ({operands})
"""


@pytest.mark.parametrize(
    ("bound", "operands", "rows"),
    [("zero", "hides_nothing, mask", 1), ("zero", "mask, hides_nothing", 1), ("three", "hides_nothing, mask", 5)],
)
def test_part_of_a_mask_that_hides_nothing_goes(bound: str, operands: str, rows: int) -> None:
    body = POSITIONS.format(bound=bound, operands=operands)
    model = attention(", bool[N,1,1,S] mask", ", both", body=body)
    values = feed(mask=PADDING)
    expected = run(converted(model), values)["y"]
    result = converted(model)
    (fused,) = (node for node in result.get_ops() if node.get_type_name() == FUSED)
    assert effective_mask(fused.input_value(3)).get_partial_shape()[2] == rows
    decompose_attention(result)
    seen = slice(3, 5) if bound == "three" else slice(0, 5)
    np.testing.assert_allclose(run(result, values)["y"][:, :, seen], expected[:, :, seen], rtol=0, atol=1e-5)
