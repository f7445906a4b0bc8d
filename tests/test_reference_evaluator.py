"""The reference evaluation against ONNX Runtime without optimizations, operator by operator, and against integers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile import reference_evaluator
from qcompile.backends.onnxruntime import BACKEND
from qcompile.qdq import PER_TOKEN, per_token_function
from qcompile.reference_evaluator import COVERED, OutOfReachError, evaluate, not_covered
from qcompile.reference_operators import quantize_dequantize_tokens
from tests.backends.portable import parse

ROOT = Path(__file__).resolve().parents[1]
X = "float[2,3,4,6] x"
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"

# Operator that a pass may write -> a graph that has it.
CASES = {
    "Add": "y = Add(x, x)",
    "Attention": "y = Attention<scale = 0.5>(x, x, x)",
    "Cast": "i = Cast<to = 7>(x) y = Cast<to = 1>(i)",
    "Concat": "y = Concat<axis = 1>(x, x)",
    "DequantizeLinear": f"{PAIR} y = Identity(d)",
    "Div": "y = Div(x, s)",
    "DynamicQuantizeLinear": "q, f, p = DynamicQuantizeLinear(x) y = DequantizeLinear(q, f, p)",
    "Erf": "y = Erf(x)",
    "Expand": "e = Shape(x) y = Expand(s, e)",
    "Flatten": "y = Flatten<axis = -1>(x)",
    "Gather": "i = Constant<value = int64[2] {1, 0}>() y = Gather<axis = 2>(x, i)",
    "Gelu": 'a = Gelu(x) b = Gelu<approximate = "tanh">(x) y = Add(a, b)',
    "HardSigmoid": "y = HardSigmoid<alpha = 0.3>(x)",
    "HardSwish": "y = HardSwish(x)",
    "IsNaN": "l = Log(x) n = IsNaN(l) y = Where(n, x, l)",
    "LayerNormalization": "y = LayerNormalization(x, v, v)",
    "MatMul": "t = Transpose<perm = [0, 1, 3, 2]>(x) y = MatMul(x, t)",
    "Mul": "y = Mul(x, x)",
    "Pow": "y = Pow(x, two)",
    "QuantizeLinear": f"{PAIR} y = Identity(d)",
    "RMSNormalization": "y = RMSNormalization(x, v)",
    "Reciprocal": "y = Reciprocal(x)",
    "ReduceMean": "i = Constant<value = int64[1] {-1}>() y = ReduceMean(x, i)",
    "Reshape": "i = Constant<value = int64[2] {0, -1}>() y = Reshape(x, i)",
    "RotaryEmbedding": "y = RotaryEmbedding(x, c, c)",
    "Shape": "i = Shape(x) y = Cast<to = 1>(i)",
    "Sigmoid": "y = Sigmoid(x)",
    "Slice": "i = Constant<value = int64[1] {1}>() j = Constant<value = int64[1] {3}>() y = Slice(x, i, j, j)",
    "Softmax": "y = Softmax<axis = 1>(x)",
    "Split": "i = Constant<value = int64[2] {1, 3}>() a, b = Split<axis = 2>(x, i) y = Concat<axis = 2>(b, a)",
    "Sqrt": "a = Abs(x) y = Sqrt(a)",
    "Sub": "y = Sub(x, s)",
    "Tanh": "y = Tanh(x)",
    "Transpose": "y = Transpose<perm = [3, 0, 2, 1]>(x)",
    "Unsqueeze": "i = Constant<value = int64[1] {2}>() y = Unsqueeze(x, i)",
    "Where": "a = Abs(x) n = Equal(a, x) y = Where(n, s, x)",
    # Of the user's model.
    "Abs": "y = Abs(x)",
    "And": "n = Less(x, s) m = Less(s, x) o = And(n, m) y = Where(o, x, s)",
    "Clip": "y = Clip(x, , s)",
    "Constant": "i = Constant<value_float = 2.0>() y = Add(x, i)",
    "ConstantOfShape": "i = Shape(x) f = ConstantOfShape(i) y = Add(x, f)",
    "Cos": "y = Cos(x)",
    "Equal": "a = Abs(x) n = Equal(a, x) y = Where(n, s, x)",
    "Exp": "y = Exp(x)",
    "Gemm": "f = Flatten<axis = -1>(x) y = Gemm<alpha = 0.5, transA = 0>(f, w)",
    "GlobalAveragePool": "y = GlobalAveragePool(x)",
    "Greater": "n = Greater(x, s) y = Where(n, x, s)",
    "GreaterOrEqual": "n = GreaterOrEqual(x, s) y = Where(n, x, s)",
    "Identity": "y = Identity(x)",
    "LeakyRelu": "y = LeakyRelu<alpha = 0.2>(x)",
    "Less": "n = Less(x, s) y = Where(n, x, s)",
    "LessOrEqual": "n = LessOrEqual(x, s) y = Where(n, x, s)",
    "Log": "a = Abs(x) y = Log(a)",
    "Max": "y = Max(x, s, two)",
    "Min": "y = Min(x, s)",
    "Neg": "y = Neg(x)",
    "Not": "n = Less(x, s) m = Not(n) y = Where(m, x, s)",
    "Or": "n = Less(x, s) m = Less(two, x) o = Or(n, m) y = Where(o, x, s)",
    "Range": "i = Constant<value = int64 {0}>() j = Constant<value = int64 {6}>() o = Constant<value = int64 {2}>() "
    "r = Range(i, j, o) y = Gather<axis = 3>(x, r)",
    "ReduceMax": "i = Constant<value = int64[1] {-1}>() y = ReduceMax(x, i)",
    "ReduceSum": "i = Constant<value = int64[2] {1, -1}>() y = ReduceSum<keepdims = 0>(x, i)",
    "Relu": "y = Relu(x)",
    "Sin": "y = Sin(x)",
    "Softplus": "y = Softplus(x)",
    "Squeeze": "i = Constant<value = int64[1] {0}>() u = Unsqueeze(x, i) y = Squeeze(u, i)",
    "Tile": "i = Constant<value = int64[4] {1, 2, 1, 3}>() y = Tile(x, i)",
    "Trilu": "y = Trilu<upper = 0>(x)",
    # Where onnx's own operators are too coarse or wrong.
    "Conv": "y = Conv<pads = [1, 0, 1, 0], strides = [2, 1], group = 3>(x, k)",
    "ConvTranspose": "y = ConvTranspose<pads = [1, 0, 1, 0], strides = [2, 1], group = 3>(x, k)",
    "GlobalMaxPool": "y = GlobalMaxPool(x)",
    "If": "a = ReduceMax(x) n = Less(a, s) y = If(n) "
    "<then_branch = g () => (t) { t = Relu(x) }, else_branch = h () => (e) { e = Neg(x) }>",
}


def case(text: str) -> ir.Model:
    return parse(
        f"({X}) => (float[?] y) {{ {text} }}",
        s=np.float32(0.02),
        z=np.uint8(100),
        two=np.float32(2),
        v=np.linspace(0.5, 2, 6, dtype=np.float32),
        w=np.eye(6, 3, dtype=np.float32),
        c=np.random.default_rng(2).normal(size=(2, 4, 3)).astype(np.float32),
        k=np.random.default_rng(3).normal(size=(3, 1, 3, 2)).astype(np.float32),
    )


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


def test_what_is_covered_has_a_case() -> None:
    assert COVERED | {"If"} == set(CASES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = MaxPool<kernel_shape = [2, 2]>(x)", "does not cover MaxPool"),
        (CASES["If"], "does not cover If"),
        (CASES["Cast"], "a Cast to integers"),
        (f"{PAIR} y = Identity(d)", None),
        ("y = Clip(x, , s)", None),
    ],
)
def test_what_it_cannot_say_is_told_before(text: str, reason: str | None) -> None:
    found = not_covered(ShapeInferencePass()(case(text)).model)
    assert found is None if reason is None else found is not None and reason in found


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


def test_evaluation_goes_on_from_what_was_observed() -> None:
    model = parse("(float[2] x) => (float[2] y, float[2] a) { a = Neg(x) y = Relu(a) }")
    feed = {"x": np.array([1, -1], np.float32)}
    found = evaluate(model, feed, {"a": np.array([5, 6], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"a": [-1, 1], "y": [5, 6]}


def test_outputs_may_be_inputs_or_constants() -> None:
    model = parse("(float[2] x, float[2] y) => (float[2] x, float[2] w) { u = Neg(y) }", w=np.ones(2, np.float32))
    feed = {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)}
    assert {name: array.tolist() for name, array in evaluate(model, feed).items()} == {"x": [0, 0], "w": [1, 1]}
