"""Operators on shapes: in Python they make what ONNX's reference makes on arrays, and read no tensor."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
import torch

from qcompile.backends.fx import lower

_CONSTANTS = """<int64[1] one = {1}, int64[2] places = {-1, 0}, int64[1] start = {3}, int64[1] end = {-9},
    int64[1] back = {-2}, int64[1] zero = {0}, int64[4] limits = {5, 1, 3, 9}, int64 seven = {7},
    int64[2] sizes = {1, 3}, bool[4] mask = {1, 0, 1, 0}, int64[2] square = {2, -1}>"""


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(s, places)",
        "y = Slice(s, start, end, zero, back)",
        "y = Slice(s, one, start)",
        "y = Concat <axis = 0> (s, one, s)",
        "a = Reshape(s, square)  y = Transpose <perm = [1, 0]> (a)",
        "a = Reshape(s, square)  y = Concat <axis = 1> (a, a)",
        "a = Reshape(s, square)  y = ReduceProd <keepdims = 0> (a, one)",
        "a = Reshape(s, square)  y = ReduceSum(a, zero)",
        "y = ReduceMax(s)",
        "y = ReduceMin <keepdims = 0> (s)",
        "a = Unsqueeze(s, zero)  y = Squeeze(a, zero)",
        "a = Add(s, limits)  b = Sub(a, one)  c = Mul(b, s)  y = Div(c, limits)",
        "y = Mod(s, limits)",
        "a = Min(s, limits)  b = Max(s, limits)  y = Sub(a, b)",
        "a = Sub(s, limits)  y = Abs(a)",
        "a = Neg(s)  y = Identity(a)",
        "a = Less(s, limits)  b = Not(a)  c = And(b, mask)  y = Where(c, s, limits)",
        "a = GreaterOrEqual(s, limits)  b = Equal(s, limits)  y = Or(a, b)",
        "a = Cast <to = 1> (s)  b = Cast <to = 1> (seven)  c = Div(a, b)  d = Ceil(c)  y = Cast <to = 7> (d)",
        "a = Cast <to = 1> (s)  b = CastLike(seven, a)  c = Mul(a, b)  y = Floor(c)",
        "a, b = Split <axis = 0> (s, sizes)  y = Concat <axis = 0> (b, a)",
        "a = Flatten <axis = 0> (s)  y = Squeeze(a)",
        "y = Pow(s, seven)",
        "y = Clip(s, seven)",
        "y = Size(x)",
    ],
)
def test_equals_the_reference_without_a_tensor(body: str) -> None:
    kind = {"Or": "bool", "Floor": "float"}.get(body.rpartition("= ")[2].partition("(")[0], "int64")
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float[a, b, c, d] x) => ({kind} y) {_CONSTANTS}'
    proto = onnx.parser.parse_model(text + f" {{ s = Shape(x)  {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.zeros((6, 3, 8, 4), np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    module = lower(ir.from_proto(proto))
    names = [getattr(node.target, "__module__", "") for node in module.graph.nodes if node.op == "call_function"]
    assert all(name.startswith("qcompile.backends.fx.h") or name.endswith(".calls") for name in names), names
    made = module(torch.from_numpy(x))["y"]
    np.testing.assert_array_equal(made, expected)
    assert made.numpy().dtype == expected.dtype


def test_an_if_that_shapes_decide_is_decided_in_python() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[m] y) <int64 limit = {3}> {
        s = Size(x)
        long = Greater(s, limit)
        y = If (long) <then_branch = a () => (float[k] t) { t = Concat <axis = 0> (x, x) },
                       else_branch = b () => (float[k] e) { e = Neg(x) }>
    }"""
    module = lower(ir.from_proto(onnx.parser.parse_model(text)))
    assert torch.export.export(module, (torch.ones(4),)).module()(torch.ones(4))["y"].shape == (8,)
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=False)
    for size, expected in ((2, 2), (5, 10)):
        assert module(torch.ones(size))["y"].shape == compiled(torch.ones(size))["y"].shape == (expected,)
