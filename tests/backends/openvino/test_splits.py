from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.openvino.splits import separate_joined_linears
from tests.backends.portable import parse, reference, weight


def joined(
    *, quantized: bool = True, per_tensor: bool = False, bias: bool = True, split: str = "axis = -1"
) -> ir.Model:
    rng = np.random.default_rng(0)
    values = {"sizes": np.array([8, 4, 12]), "b": rng.standard_normal(24).astype(np.float32)}
    if quantized:
        values |= weight(rng, (32, 24), 1, per_tensor=per_tensor)
    else:
        values |= {"f": rng.standard_normal((32, 24)).astype(np.float32)}
    return parse(
        f"""(float[2,S,32] x) => (float[2,S,O] y_a, float[2,S,O] y_b, float[2,S,O] y_c)
        <float[2,S,24] a>
        {{
            {"f = DequantizeLinear <axis = 1> (w, ws, wz)" if quantized else ""}
            {"m = MatMul (x, f)" if bias else "a = MatMul (x, f)"}
            {"a = Add (m, b)" if bias else ""}
            p_a, y_b, p_c = Split <{split}> (a, sizes)
            y_a = Relu (p_a)
            y_c = Neg (p_c)
        }}""",
        **values,
    )


def text(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "model",
    [
        joined(),
        joined(per_tensor=True),
        joined(bias=False),
        joined(quantized=False),
        joined(split="axis = 2"),
    ],
)
def test_each_reader_gets_its_linear(model: ir.Model) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)}
    expected = reference(model, feed)
    separate_joined_linears(model)
    operators = [node.op_type for node in model.graph]
    assert operators.count("MatMul") == 3
    assert "Split" not in operators
    results = reference(model, feed)
    assert list(results) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
    once = text(model)
    separate_joined_linears(model)
    assert text(model) == once


def test_joined_value_with_another_reader_stays() -> None:
    model = joined()
    add = next(node for node in model.graph if node.op_type == "Add")
    model.graph.append(ir.node("Relu", [add.outputs[0]], name="other"))
    before = text(model)
    separate_joined_linears(model)
    assert text(model) == before


@pytest.mark.parametrize("split", ["axis = 1", "axis = 0"])
def test_split_of_another_axis_stays(split: str) -> None:
    model = joined(split=split)
    before = text(model)
    separate_joined_linears(model)
    assert text(model) == before


def test_split_of_a_computed_value_stays() -> None:
    model = joined()
    split = next(node for node in model.graph if node.op_type == "Split")
    split.replace_input_with(0, model.graph.inputs[0])
    before = text(model)
    separate_joined_linears(model)
    assert text(model) == before


def test_split_at_computed_places_stays() -> None:
    model = joined()
    split = next(node for node in model.graph if node.op_type == "Split")
    sizes = ir.node("Abs", [split.inputs[1]], name="abs")
    model.graph.insert_before(split, sizes)
    split.replace_input_with(1, sizes.outputs[0])
    before = text(model)
    separate_joined_linears(model)
    assert text(model) == before
