from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends.onnxruntime.linears import fuse_integer_linears, fuse_per_token_linears
from tests.backends.onnxruntime.rewrites import check, operators, refuses, rewritten
from tests.backends.portable import (
    PER_TOKEN,
    Case,
    dynamic_per_tensor,
    dynamic_per_token,
    linear_case,
    parse,
    static_shared,
)

FUSED = {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def changed(case: Case, *edits: tuple[str, str], **initializers: np.ndarray) -> ir.Model:
    """The portable linear with its text edited and initializers replaced."""
    graph = case.model.graph
    values = {name: value.const_value.numpy() for name, value in graph.initializers.items() if value.const_value}
    text = """(float[N,S,32] x) => (float[N,S,24] y)
    {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        f = DequantizeLinear <axis = 1> (w, ws, wz)
        m = MatMul (d, f)
        y = Add (m, b)
    }"""
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return parse(text, **{**values, **initializers})


@pytest.mark.parametrize("per_tensor", [True, False])
@pytest.mark.parametrize("weight_zero", [0, 5])
def test_static(per_tensor: bool, weight_zero: int) -> None:
    case = linear_case(per_tensor=per_tensor, weight_zero=weight_zero)
    check(case.model, case.feed, FUSED, fuse_integer_linears, step=case.step)


def test_product_keeps_the_name_of_the_layer_and_of_the_output() -> None:
    model = linear_case().model
    next(node for node in model.graph if node.op_type == "MatMul").name = "layer.0.query"
    after = rewritten(model, fuse_integer_linears)
    (product,) = (node for node in after.graph if node.op_type == "MatMulIntegerToFloat")
    assert product.name == "layer.0.query"
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_bias_on_the_left() -> None:
    case = linear_case()
    model = changed(case, ("Add (m, b)", "Add (b, m)"))
    check(model, case.feed, FUSED, fuse_integer_linears, step=case.step)


def test_bias_of_int32_becomes_float() -> None:
    case = linear_case()
    model = changed(
        case,
        ("y = Add (m, b)", "b_f = DequantizeLinear <axis = 0> (b, bs, bz)\n y = Add (m, b_f)"),
        b=np.arange(24, dtype=np.int32) * 100,
        bs=np.full(24, 1e-3, np.float32),
        bz=np.zeros(24, np.int32),
    )
    after = check(model, case.feed, FUSED, fuse_integer_linears, step=case.step)
    (product,) = (node for node in after.graph if node.op_type == "MatMulIntegerToFloat")
    bias = product.inputs[6]
    assert bias is not None
    assert bias.const_value is not None
    np.testing.assert_allclose(bias.const_value.numpy(), np.arange(24) * 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "bias"),
    [
        ("Add (m, b)", np.ones((5, 24), np.float32)),  # another value for every position
        ("Add (m, b)", np.ones((), np.float32)),  # one value
        ("Mul (m, b)", np.ones(24, np.float32)),
    ],
)
def test_what_is_no_bias_stays_outside(edit: str, bias: np.ndarray) -> None:
    case = linear_case()
    model = changed(case, ("Add (m, b)", edit), b=bias)
    behind = edit.split(maxsplit=1)[0]
    check(model, case.feed, {**FUSED, behind: 1}, fuse_integer_linears, step=case.step)


def test_product_with_two_readers_keeps_its_add() -> None:
    case = linear_case()
    model = changed(case, ("y = Add (m, b)", "a = Add (m, b)\n y = Mul (a, m)"))
    check(model, case.feed, {**FUSED, "Add": 1, "Mul": 1}, fuse_integer_linears, step=case.step * 40)


def test_shared_readers_share_one_quantization() -> None:
    case = static_shared()
    expected = {"QuantizeLinear": 1, "MatMulIntegerToFloat": 3}
    check(case.model, case.feed, expected, fuse_integer_linears, step=case.step)


def test_dynamic_per_tensor() -> None:
    case = dynamic_per_tensor()
    expected = {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3}
    check(case.model, case.feed, expected, fuse_integer_linears, step=case.step)


@pytest.mark.parametrize(
    ("edits", "initializers"),
    [
        (
            [("<axis = 1> (w", "<axis = 0> (w"), ("float[N,S,24]", "float[N,S,32]")],
            {
                "w": np.ones((32, 32), np.int8),
                "ws": np.ones(32, np.float32),
                "wz": np.zeros(32, np.int8),
                "b": np.ones(32, np.float32),
            },
        ),
        ([("MatMul (d, f)", "MatMul (x, f)")], {}),
        ([("DequantizeLinear (q, s, z)", "DequantizeLinear <axis = 2> (q, sv, zv)")], {}),
        ([("float[N,S,32] x", "float[N,S,32] x, int8[32,24] w_in"), ("(w, ws", "(w_in, ws")], {}),
    ],
    ids=["one scale per input channel", "float activation", "one scale per channel of x", "weight is an input"],
)
def test_refuses(edits: list[tuple[str, str]], initializers: dict[str, np.ndarray]) -> None:
    vectors = {"sv": np.full(32, 0.03, np.float32), "zv": np.full(32, 99, np.uint8)}
    refuses(changed(linear_case(), *edits, **vectors, **initializers), fuse_integer_linears)


def test_refuses_a_vector_as_activation() -> None:
    case = linear_case()
    edits = [("float[N,S,32] x", "float[32] x"), ("float[N,S,24] y", "float[24] y")]
    refuses(changed(case, *edits), fuse_integer_linears)


def test_per_token() -> None:
    case = dynamic_per_token()
    expected = {
        "ReduceMax": 1,
        "ReduceMin": 1,
        "Neg": 1,
        "Max": 1,
        "Div": 1,
        "QuantizeLinear": 1,
        "MatMulIntegerToFloat": 3,
        "Mul": 4,
        "Add": 3,
    }
    check(case.model, case.feed, expected, fuse_per_token_linears, step=case.step)


def test_per_token_row_of_tiny_values_gives_no_nan() -> None:
    case = dynamic_per_token()
    feed = {"x": np.full((1, 2, 32), 1e-38, np.float32)}
    after = rewritten(case.model, fuse_per_token_linears)
    assert operators(after)["MatMulIntegerToFloat"] == 3
    check(case.model, feed, operators(after), fuse_per_token_linears)


def test_per_token_refuses_a_scale_per_input_channel() -> None:
    model = parse(
        """(float[N,S,32] x) => (float[N,S,24] y)
        {
            d = qcompile.QuantizeDequantizePerToken (x)
            f = DequantizeLinear <axis = 0> (w, ws, wz)
            y = MatMul (d, f)
        }""",
        PER_TOKEN,
        w=np.ones((32, 24), np.int8),
        ws=np.ones(32, np.float32),
        wz=np.zeros(32, np.int8),
    )
    refuses(model, fuse_per_token_linears)


def test_per_token_leaves_another_function_alone() -> None:
    model = dynamic_per_token().model
    proto = ir.to_proto(model)
    for node in [*proto.graph.node, *proto.functions]:
        for field in ("op_type", "name"):
            if getattr(node, field, "") == "QuantizeDequantizePerToken":
                setattr(node, field, "Another")
    refuses(ir.from_proto(proto), fuse_per_token_linears)


def test_case_of_a_matrix_of_tokens() -> None:
    case = linear_case(shape=(7, 32), names="N")
    check(case.model, case.feed, FUSED, fuse_integer_linears, step=case.step)
