from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from qcompile.passes.convert_opset import ConvertOpset

OLD = """
<ir_version: 7, opset_import: ["" : {opset}]>
g (float[B, 3, 8, 8] x) => (float[B, 4] y)
<float[4, 3, 3, 3] w, float[4] b = {{1, 2, 3, 4}}, float[4, 4] f = {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}},
 float low = {{0}}, float high = {{6}}> {{
    c = Conv(x, w, b) r = Clip(c, low, high) m = ReduceMean<axes = [2, 3], keepdims = 0>(r) l = Gemm(m, f, b)
    y = Softmax<axis = 1>(l)
}}
"""


def old_model(opset: int) -> str:
    weight = ", ".join(str(number % 7 - 3) for number in range(108))
    return OLD.format(opset=opset).replace("3] w,", f"3] w = {{{weight}}},")


@pytest.mark.parametrize("opset", range(11, 18))
def test_old_opsets_are_raised(rewrite, opset: int) -> None:
    result = rewrite(old_model(opset), ConvertOpset())
    assert result.model.opset_imports[""] == 23
    assert [finding.action for finding in result.findings] == ["converted"]
    assert result.model.ir_version >= 10


NEWER = """
<ir_version: 10, opset_import: ["" : {opset}]>
g (float[B, 4] x) => (float[B, 4] y) <int64[2] s = {{-1, 4}}> {{ {body} }}
"""


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 24, 25, 26])
def test_unchanged_operators_are_taken_over(rewrite, opset: int) -> None:
    result = rewrite(
        NEWER.format(opset=opset, body="a = Reshape(x, s) b = Cast<to = 1>(a) y = Tanh(b)"), ConvertOpset()
    )
    assert result.model.opset_imports[""] == 23
    assert result.operators == ["Reshape", "Cast", "Tanh"]


@pytest.mark.parametrize(("attributes", "multiplied"), [("", 1), ("<alpha = 1.702>", 2)])
def test_swish_is_written_as_x_times_sigmoid(rewrite, attributes: str, multiplied: int) -> None:
    result = rewrite(NEWER.format(opset=24, body=f"y = Swish{attributes}(x)"), ConvertOpset())
    assert result.model.opset_imports[""] == 23
    assert [result.operators.count(operator) for operator in ("Swish", "Sigmoid", "Mul")] == [0, 1, multiplied]


def test_what_cannot_be_converted_stays() -> None:
    text = NEWER.format(opset=26, body="a = BitCast<to = 6>(x) b = BitCast<to = 1>(a) y = Tanh(b)")
    model = ir.from_onnx_text(text)
    before = ir.to_proto(model).SerializeToString()
    result = ConvertOpset()(model)
    assert not result.modified
    (finding,) = result.findings
    assert finding.action == "kept"
    assert "BitCast" in finding.reason
    assert ir.to_proto(model).SerializeToString() == before


def test_an_input_that_the_lower_opset_has_not_stays() -> None:
    body = "y = Attention<q_num_heads = 1, kv_num_heads = 1>(x, x, x, , , , lengths)"
    text = (
        NEWER.format(opset=24, body=body)
        .replace("float[B, 4]", "float[B, 3, 4]")
        .replace("4] x", "4] x, int64[B] lengths")
    )
    model = ir.from_onnx_text(text)
    result = ConvertOpset()(model)
    assert not result.modified
    assert model.opset_imports[""] == 24
    assert "Attention" in result.findings[0].reason


def test_what_the_library_skips_is_not_half_converted() -> None:
    # Before opset 21 the scale of GroupNormalization had one value per group; without shapes it cannot be expanded.
    model = ir.from_onnx_text("""
    <ir_version: 9, opset_import: ["" : 18]> g (float[] u, float[B, 4, N] x) => (float[B, 4, N] y)
    <float[2] s = {1, 2}, float[2] b = {3, 4}> { n = NonZero(x) z = Reshape(x, n)
    y = GroupNormalization<num_groups = 2>(z, s, b) }
    """)
    result = ConvertOpset()(model)
    assert not result.modified
    assert result.findings[0].action == "kept"
    assert model.opset_imports[""] == 18


def test_names_and_metadata_survive_onnxs_converter() -> None:
    model = ir.from_onnx_text(old_model(11))
    names = [f"layer.{index}" for index, _ in enumerate(model.graph)]
    for node, name in zip(model.graph, names, strict=True):
        node.name, node.metadata_props["scope"] = name, name
    ConvertOpset()(model)
    kept = {node.name: dict(node.metadata_props) for node in model.graph if node.name in names}
    assert kept == {name: {"scope": name} for name in names}
    assert len({node.name for node in model.graph}) == len(model.graph)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_other_domains_keep_their_version() -> None:
    text = NEWER.format(opset=20, body="z = Tanh(x) y = com.microsoft.FastGelu(z)")
    model = ir.from_onnx_text(text.replace('"" : 20]', '"" : 20, "com.microsoft" : 1]'))
    assert ConvertOpset()(model).modified
    assert dict(model.opset_imports) == {"": 23, "com.microsoft": 1}


@pytest.mark.parametrize(("refused", "reached"), [((23,), 21), ((21, 23), 17), ((17, 21, 23), 23), ((), 23)])
def test_a_conversion_that_the_runtime_refuses_is_not_made(refused: tuple[int, ...], reached: int) -> None:
    model = ir.from_onnx_text(old_model(17))
    result = ConvertOpset(runs=lambda asked: asked.opset_imports[""] not in refused)(model)
    assert model.opset_imports[""] == reached
    assert result.modified == (reached != 17)
    (finding,) = result.findings
    assert finding.action == ("converted" if reached != 17 else "kept")
    assert ("the runtime refuses it in opset 23" in finding.reason) == (reached != 23)
