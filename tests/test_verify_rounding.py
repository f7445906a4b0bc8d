"""What an exact pass changes by rounding is let through, what it changes of the meaning is not, in a tiny range too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.contract import Pass, Result
from qcompile.errors import VerificationError
from qcompile.pipeline import Log, Pipeline
from qcompile.reference_evaluator import evaluate
from qcompile.reference_precision import in_float64
from qcompile.report.text import promise
from qcompile.session import Session
from qcompile.verify import EXACT_TOLERANCE, outputs_of
from qcompile.verify_rounding import judge
from tests.backends.portable import parse

HEADER = "(float[64, 64] x, float[64, 64] z) => (float[64, 64] y)"
TINY = f"{HEADER} {{ a = Add(x, z) b = Add(a, deep) y = Sigmoid(b) }}"
"""A sigmoid that never exceeds 3e-5: the absolute error of its kernel, some 1e-7, is half a percent of that."""

RANDOM = np.random.default_rng(0)
FEED = {name: RANDOM.uniform(0, 1, (64, 64)).astype(np.float32) for name in ("x", "z")}


@dataclasses.dataclass(frozen=True)
class Rewrite(Pass):
    """Does what it is told, and promises to keep the meaning."""

    change: Callable[[ir.Model], None] = dataclasses.field(repr=False)

    def call(self, model: ir.Model) -> Result:
        self.change(model)
        return Result(model, modified=True)


def regrouped(model: ir.Model) -> None:
    """(x + z) + deep -> x + (z + deep)."""
    first, second = model.graph[0], model.graph[1]
    x, z, deep = *first.inputs, second.inputs[1]
    first.replace_input_with(0, z)
    first.replace_input_with(1, deep)
    second.replace_input_with(0, x)
    second.replace_input_with(1, first.outputs[0])


def scaled(model: ir.Model) -> None:
    """One part in a thousand more on the logits is one percent of the output."""
    sigmoid = next(node for node in model.graph if node.op_type == "Sigmoid")
    insert(model, sigmoid, "Mul", 1.001)


def cancelled(model: ir.Model) -> None:
    """x -> (x + 4096) - 4096: the same number, of which float32 loses digits."""
    insert(model, model.graph[0], "Add", 4096)
    insert(model, model.graph[1], "Sub", 4096)


def insert(model: ir.Model, before: ir.Node, operator: str, operand: float) -> None:
    """Put an operator of a constant before what a node reads first."""
    name = f"{operator}_{operand}"
    constant = ir.val(name, const_value=ir.tensor(np.float32(operand), name=name))
    model.graph.register_initializer(constant)
    node = ir.node(operator, [before.inputs[0], constant])
    node.outputs[0].name, node.outputs[0].type = f"{name}_of", ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(before, node)
    before.replace_input_with(0, node.outputs[0])


def run(text: str, *changes: Callable[[ir.Model], None], **constants: Any) -> Log:
    log = Log()
    pipeline = Pipeline(get("onnxruntime").open_session, [FEED], (), lambda _name, _part: None)
    pipeline.run(parse(text, **constants), [Rewrite(change) for change in changes], log, required=True)
    return log


def test_rounding_of_a_tiny_range_is_no_change_of_meaning_and_the_report_names_it() -> None:
    (found,) = run(TINY, regrouped, deep=np.float32(-12)).passes
    assert found.max_error is not None
    assert found.in_float64 is not None
    assert found.rounding is not None
    assert found.max_error > 10 * EXACT_TOLERANCE
    assert found.in_float64 == 0
    assert EXACT_TOLERANCE < found.rounding < 0.02
    assert promise(found) == (
        f"exact: largest error {found.in_float64:.1e} of the range in float64; the runtime differs by "
        f"{found.max_error:.1e}, and rounds by {found.rounding:.1e} without the pass"
    )


@pytest.mark.parametrize("changes", [(scaled,), (regrouped, scaled), (scaled, regrouped)])
def test_one_percent_of_a_tiny_range_is_refused(changes: tuple[Callable[[ir.Model], None], ...]) -> None:
    with pytest.raises(VerificationError, match=r"in float64 the difference is 0\.0\d+; the runtime rounds by 0\.00"):
        run(TINY, *changes, deep=np.float32(-12))


def test_a_rewrite_that_cancels_digits_is_refused_although_it_means_the_same() -> None:
    with pytest.raises(VerificationError, match=r"in float64 the difference is \S+; the runtime rounds by 0 without"):
        run(f"{HEADER} {{ a = Add(x, z) y = Neg(a) }}", cancelled)


PLACES = (
    "(float[64, 64] x, float[64, 64] z) => (int64[64] y) "
    "{ a = Add(x, z) b = Add(a, deep) y = ArgMax<axis = 1, keepdims = 0>(b) }"
)
"""Where a sum is largest, of numbers that have a few digits left behind the point: some are equal."""


def buried(model: ir.Model) -> None:
    """b -> (b + 2^30) - 2^30, of which float32 leaves nothing to decide on."""
    decides = next(node for node in model.graph if node.op_type == "ArgMax")
    insert(model, decides, "Sub", 2.0**30)
    insert(model, next(node for node in model.graph if node.op_type == "Sub"), "Add", 2.0**30)


def test_a_tie_that_falls_the_other_way_is_rounding() -> None:
    (found,) = run(PLACES, regrouped, deep=np.float32(2**18)).passes
    assert found.max_error is not None
    assert found.max_error > 0.1
    assert found.in_float64 == 0
    assert found.rounding == 0  # of the sums that it decides on: no more than float32 does


def test_integers_decided_on_floats_that_lost_their_digits_are_refused() -> None:
    with pytest.raises(VerificationError, match=r"the runtime rounds by 0 without the pass and 1 with it"):
        run(PLACES, buried, deep=np.float32(0))


def test_integers_that_do_not_follow_from_the_floats_are_refused() -> None:
    """A runtime that computes the floats right, and decides for the smallest: planted, of the model with the pass."""
    open_session, samples = get("onnxruntime").open_session, [FEED]

    def decides_wrongly(model: ir.Model) -> Session:
        text = ir.to_proto(model)
        for node in text.graph.node:
            node.op_type = "ArgMin" if node.op_type == "ArgMax" else node.op_type
        return open_session(ir.from_proto(text))

    before = parse(PLACES, deep=np.float32(0))
    after = before.clone()
    outputs = outputs_of(before, samples, open_session), outputs_of(after, samples, decides_wrongly)
    verdict = judge((before, after), outputs, samples, (), decides_wrongly)
    assert not verdict.kept
    assert verdict.rounding_after == verdict.in_float64 == 0
    assert verdict.words.endswith("which does not explain the integers that it decides on")


def test_without_a_reference_a_difference_is_refused_and_the_reason_is_said() -> None:
    text = f"{HEADER} {{ a = Add(x, z) b = Add(a, deep) s = Sigmoid(b) n = Det(x) t = Mul(n, nil) y = Add(s, t) }}"
    with pytest.raises(
        VerificationError, match="whether that is rounding is not known: the reference does not cover Det"
    ):
        run(text, regrouped, deep=np.float32(-12), nil=np.float32(0))


def test_what_agrees_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompile.verify_rounding.evaluate", None)
    (found,) = run(TINY, regrouped, deep=np.float32(0)).passes
    assert found.max_error is not None
    assert found.max_error <= EXACT_TOLERANCE
    assert found.in_float64 is None


BRANCH = (
    "c = Constant<value_float = 0.1>() i = Shape(x) f = ConstantOfShape<value = float[1] {0.1}>(i) "
    "n = Not(t) k = Cast<to = 1>(n) a = Add(x, c) b = Mul(a, f) d = Add(b, k) "
    "y = If(t)<then_branch = g () => (p) { u = Constant<value_floats = [0.1, 0.1]>() p = Mul(d, u) }, "
    "else_branch = h () => (q) { q = Neg(d) }>"
)


def test_float64_reaches_constants_casts_and_branches() -> None:
    model = parse(f"(float[2] x) => (float[2] y) {{ {BRANCH} }}", t=np.array(True))
    before = ir.to_proto(model)
    feed, tenth = {"x": np.array([1, 2], np.float64)}, np.float64(np.float32(0.1))
    y = evaluate(in_float64(model), feed)["y"]
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, (feed["x"] + tenth) * tenth * tenth, rtol=1e-15)
    assert ir.to_proto(model) == before
