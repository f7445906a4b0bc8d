"""If, Loop and Scan: in Python, through torch's own operators where they are compiled, and resolved when lowered."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch

from qcompile.backends.fx import lower
from qcompile.errors import UnsupportedOperator

_HEAD = '<ir_version: 10, opset_import: ["" : 23]> '
_IF = """g (bool c, float[n] x) => (float[n] y) <float two = {2.0}> {
    y = If (c) <then_branch = a () => (float[n] t) { t = Mul(x, two) },
                else_branch = b () => (float[n] e) { e = Neg(x) }>
}"""
_COUNTED = """g (float[n] x) => (float[n] last, float[3, n] all) <int64 times = {3}> {
    last, all = Loop (times, , x) <body = b (int64 i, bool c, float[n] state)
        => (bool going, float[n] next, float[n] kept) {
        going = Identity(c)
        next = Add(state, x)
        kept = Neg(next)
    }>
}"""
_WHILE = """g (float[n] x) => (float[n] last) <int64 most = {100}, float limit = {10.0}> {
    last = Loop (most, , x) <body = b (int64 i, bool c, float[n] state) => (bool going, float[n] next) {
        next = Add(state, x)
        sum = ReduceSum <keepdims = 0> (next)
        going = Less(sum, limit)
    }>
}"""


def _lowered(text: str) -> torch.fx.GraphModule:
    return lower(ir.from_proto(onnx.parser.parse_model(_HEAD + text)))


def _compiled(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return torch.compile(module, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("wrap", [lambda module: module, _compiled], ids=["eager", "compiled"])
def test_if_chooses_by_data(wrap: object) -> None:
    run, x = wrap(_lowered(_IF)), torch.tensor([1.0, -3.0])  # type: ignore[operator]
    torch.testing.assert_close(run(torch.tensor(True), x)["y"], 2 * x)
    torch.testing.assert_close(run(torch.tensor(False), x)["y"], -x)


def test_if_is_exported_as_cond() -> None:
    x = torch.tensor([1.0, -3.0])
    exported = torch.export.export(_lowered(_IF), (torch.tensor(True), x), strict=True)
    assert "cond" in {str(node.target) for node in exported.graph.nodes}
    torch.testing.assert_close(exported.module()(torch.tensor(False), x)["y"], -x)


def test_if_of_a_constant_leaves_one_branch() -> None:
    module = _lowered(_IF.replace("bool c, ", "").replace("<float two", "<bool c = {0}, float two"))
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert not list(module.children())
    torch.testing.assert_close(module(torch.tensor([2.0]))["y"], torch.tensor([-2.0]))


@pytest.mark.parametrize("wrap", [lambda module: module, _compiled], ids=["eager", "compiled"])
def test_a_counted_loop_stacks_what_each_turn_makes(wrap: object) -> None:
    run, x = wrap(_lowered(_COUNTED)), torch.tensor([1.0, 2.0])  # type: ignore[operator]
    made = run(x)
    torch.testing.assert_close(made["last"], 4 * x)
    torch.testing.assert_close(made["all"], torch.stack([-2 * x, -3 * x, -4 * x]))


@pytest.mark.parametrize("wrap", [lambda module: module, _compiled], ids=["eager", "compiled"])
def test_a_loop_ends_where_data_say(wrap: object) -> None:
    run = wrap(_lowered(_WHILE))  # type: ignore[operator]
    torch.testing.assert_close(run(torch.tensor([1.0, 1.0]))["last"], torch.tensor([5.0, 5.0]))
    torch.testing.assert_close(run(torch.tensor([3.0, 1.0]))["last"], torch.tensor([9.0, 3.0]))


def test_a_loop_that_data_end_and_that_stacks_is_refused_when_exported() -> None:
    text = _COUNTED.replace("going = Identity(c)", "sum = ReduceSum <keepdims = 0> (state)  going = Less(sum, sum)")
    module = _lowered(text)
    assert module(torch.ones(2))["all"].shape == (1, 2)
    with pytest.raises(UnsupportedOperator, match="makes something in each turn"):
        torch.export.export(module, (torch.ones(2),), strict=False)


@pytest.mark.parametrize("wrap", [lambda module: module, _compiled], ids=["eager", "compiled"])
def test_scan_carries_a_state(wrap: object) -> None:
    text = """g (float[2] start, float[4, 2] x) => (float[2] last, float[4, 2] sums) {
        last, sums = Scan (start, x) <num_scan_inputs = 1, body = b (float[2] s, float[2] e)
            => (float[2] t, float[2] u) { t = Add(s, e)  u = Identity(t) }>
    }"""
    run, x = wrap(_lowered(text)), torch.arange(8.0).reshape(4, 2)  # type: ignore[operator]
    made = run(torch.zeros(2), x)
    torch.testing.assert_close(made["sums"], x.cumsum(0))
    torch.testing.assert_close(made["last"], x.sum(0))
