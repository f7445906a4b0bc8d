"""The reference evaluation against ONNX Runtime without optimizations, operator by operator, and against integers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from qcompile import reference_evaluator
from qcompile.backends.onnxruntime import BACKEND
from qcompile.qdq import PER_TOKEN, per_token_function
from qcompile.reference_coverage import COVERED
from qcompile.reference_evaluator import OutOfReachError, evaluate
from qcompile.reference_operators import quantize_dequantize_tokens
from tests.backends.portable import parse
from tests.reference_cases import CASES, PAIR, case

ROOT = Path(__file__).resolve().parents[1]


def emitted() -> set[str]:
    """Operators that passes and modules below them write: `ir.node("Mul", ..)`, `tape.op("Mul", ..)`, `op.Mul(..)`."""
    found = set()
    for path in [*(ROOT / "passes").glob("*.py"), *(ROOT / "qcompile").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            name = call.args[0] if call.func.attr in ("node", "op", "Node") and call.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
            elif isinstance(call.func.value, ast.Name) and call.func.value.id == "op":
                found.add(call.func.attr)
    return {name for name in found if re.fullmatch(r"[A-Z]\w+", name)}


def test_every_operator_that_a_pass_writes_has_a_case() -> None:
    names = emitted()
    assert {"QuantizeLinear", "MatMul", "Attention"} <= names
    assert names <= set(CASES) | {PER_TOKEN}
    assert names <= COVERED | {PER_TOKEN}


def test_an_evaluation_that_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_evaluator, "MOST_PRODUCTS", 2 * 3 * 4 * 6 * 3 - 1)
    with pytest.raises(OutOfReachError, match="products"):
        evaluate(case("y = MatMul(x, w)"), {"x": np.zeros((2, 3, 4, 6), np.float32)})


def test_an_output_without_a_name_is_not_what_an_input_that_is_left_out_reads() -> None:
    model = case("q, f, p = DynamicQuantizeLinear(x) d = DequantizeLinear(q, f) y = Clip(d, , two)")
    model.graph.node(0).outputs[2].name = ""
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)}
    assert np.isfinite(evaluate(model, feed)["y"]).all()


@pytest.mark.parametrize("name", CASES)
def test_operators_agree_with_the_runtime(name: str) -> None:
    model = case(CASES[name])
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)}
    expected = BACKEND.open_session(model, optimization="disabled").run(feed)["y"]
    np.testing.assert_allclose(evaluate(model, feed)["y"], expected, rtol=1e-5, atol=1e-5)


def test_products_of_integers_are_exact_where_int32_overflows() -> None:
    count = 70_000
    model = parse(
        f"(float[1,{count}] x) => (float[1,1] y) {{ q = QuantizeLinear(x, one, z) d = DequantizeLinear(q, one, z) "
        "v = DequantizeLinear(w, one, p) y = MatMul(d, v) }",
        one=np.float32(1),
        z=np.uint8(0),
        p=np.int8(0),
        w=np.full((count, 1), 127, np.int8),
    )
    feed = {"x": np.full((1, count), 255, np.float32)}
    assert evaluate(model, feed)["y"].item() == np.float32(count * 255 * 127)
    assert count * 255 * 127 > 2**31


@pytest.mark.parametrize("huge", [3e9, -3e9, 3e38, -np.inf, np.inf])
def test_quantization_saturates_on_the_side_of_the_number(huge: float) -> None:
    model = parse(f"(float[1] x) => (float[1] y) {{ {PAIR} y = Identity(d) }}", s=np.float32(0.5), z=np.int8(3))
    (y,) = evaluate(model, {"x": np.array([huge], np.float32)})["y"]
    assert y == (0.5 * (127 - 3) if huge > 0 else 0.5 * (-128 - 3))


def test_tokens_are_quantized_as_the_function_says() -> None:
    model = parse("(float[3,8] x) => (float[3,8] y) { y = Identity(x) }")
    function = per_token_function(23)
    model.functions[function.identifier()] = function
    model.opset_imports["qcompile"] = 1
    node = model.graph[0]
    node.domain, node.op_type = "qcompile", PER_TOKEN
    feed = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) * [[1], [1e-3], [0]]}
    feed["x"] = feed["x"].astype(np.float32)
    expected = BACKEND.open_session(model, optimization="disabled").run(feed)["y"]
    np.testing.assert_array_equal(evaluate(model, feed)["y"], expected)
    np.testing.assert_array_equal(evaluate(model, feed, channels_per_scale=lambda _: 0)["y"], feed["x"])


def test_groups_of_channels_have_their_own_scale() -> None:
    x = np.array([[1, 127, 1, 0.5]], np.float32)
    assert quantize_dequantize_tokens(x, 4).tolist() == [[1, 127, 1, 0]]
    assert quantize_dequantize_tokens(x, 2)[0, 2:].tolist() == [1, pytest.approx(64 / 127)]
    assert quantize_dequantize_tokens(x, 3).tolist() == [[1, 127, 1, 0.5]]


def test_evaluation_goes_on_from_what_was_observed() -> None:
    model = parse("(float[2] x) => (float[2] y, float[2] a) { a = Neg(x) y = Relu(a) }")
    feed = {"x": np.array([1, -1], np.float32)}
    found = evaluate(model, feed, {"a": np.array([5, 6], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"a": [-1, 1], "y": [5, 6]}


def test_what_a_branch_reads_is_there_until_then() -> None:
    branches = "then_branch = g () => (t) { t = Neg(a) }, else_branch = h () => (e) { e = Exp(b) }"
    model = case(f"a = Relu(x) b = Neg(a) m = ReduceMax<keepdims = 0>(b) n = Less(s, m) y = If(n)<{branches}>")
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, {"x": x})["y"], np.exp(-np.maximum(x, 0)), rtol=1e-6)


def test_outputs_may_be_inputs_or_constants() -> None:
    model = parse("(float[2] x, float[2] y) => (float[2] x, float[2] w) { u = Neg(y) }", w=np.ones(2, np.float32))
    feed = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}
    assert {name: array.tolist() for name, array in evaluate(model, feed).items()} == {"x": [0, 0], "w": [1, 1]}


@pytest.mark.parametrize("opset", [9, 14, 23])
def test_normalization_takes_the_statistics_that_it_is_given_in_every_opset(opset: int) -> None:
    model = parse(
        "(float[2,3,4] x) => (float[2,3,4] y) "
        "{ y = BatchNormalization<momentum = 0.5, epsilon = 1.0>(x, f, f, zero, f) }",
        f=np.full(3, 3, np.float32),
        zero=np.zeros(3, np.float32),
    )
    model.opset_imports[""] = opset
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(evaluate(model, {"x": x})["y"], 1.5 * x + 3, rtol=1e-5)
