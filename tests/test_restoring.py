"""Layers put back to float: the model is the one that the passes make when they are told to ignore these layers."""

from __future__ import annotations

import hashlib
import itertools

import hypothesis
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.errors import NothingMatchedError
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.quantize_attention import QuantizeAttention
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.recipe import Recipe
from qcompile.reference_evaluator import evaluate
from qcompile.restoring import restored, shared_weights
from qcompile.verify import check_exact, check_valid, difference
from qcompile.work import Work
from tests.passes.quantizable import PER_TENSOR_DYNAMIC, PER_TOKEN, calibrator, parse
from tests.random_graphs import Choices, build, choices, feeds

few = hypothesis.settings(
    max_examples=hypothesis.settings.default.max_examples // 50, deadline=None, phases=[hypothesis.Phase.generate]
)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def linears() -> ir.Model:
    """Three linears: two read one value, two of them have one weight."""
    return parse(
        """g (float[n, 4] x) => (float[n, 4] y) {
            [a] m = MatMul(x, w) p = Add(m, b) r = Relu(p)
            [b] q = MatMul(r, v) [c] s = MatMul(r, v) t = Sub(q, s)
            [d] u = MatMul(x, w) z = Slice(u, i, j, k) y = Add(t, z)
        }""",
        w=weight(4, 6),
        v=weight(6, 4),
        b=weight(6),
        **{name: np.array([number]) for name, number in {"i": 0, "j": 4, "k": 1}.items()},
    )


def convolutions() -> ir.Model:
    """A residual block behind a convolution, whose output flows on in integers, and a linear at its end."""
    return parse(
        """g (float[n, 4, 8, 8] x) => (float[n, 3] y) {
            [a] c = Conv <pads = [1, 1, 1, 1]> (x, k, b) r = Relu(c)
            [b] d = Conv <pads = [1, 1, 1, 1]> (r, k) e = Add(r, d)
            [c] f = Conv(e, h, b) p = GlobalAveragePool(f) l = Flatten(p) [d] y = MatMul(l, w)
        }""",
        k=weight(4, 4, 3, 3),
        h=weight(4, 4, 3, 3),
        b=weight(4),
        w=weight(4, 3),
    )


def attention() -> ir.Model:
    """An embedding, a linear and attention."""
    return parse(
        """g (int64[n, 6] x) => (float[n, 6, 8] y) {
            [a] e = Gather(t, x) [b] q = MatMul(e, w) r = Reshape(q, s) [c] o = Attention(r, r, r)
            y = Reshape(o, u)
        }""",
        t=weight(50, 8),
        w=weight(8, 8),
        s=np.array([0, 2, 6, 4]),
        u=np.array([0, 6, 8]),
    )


def by_insert_qdq(model: ir.Model, ignore: frozenset[str], **settings) -> ir.Model:
    data = calibrator(model)
    InsertQdq(ignore=ignore, calibrator=data, **settings)(model)
    return model


def by_all(model: ir.Model, ignore: frozenset[str]) -> ir.Model:
    """Attention under dynamic activations needs no data."""
    InsertQdq(ignore=ignore, activations=PER_TOKEN)(model)
    QuantizeAttention(ignore=ignore, activations=PER_TOKEN)(model)
    QuantizeEmbeddings(ignore=ignore, min_elements=1)(model)
    return model


def contents(model: ir.Model) -> tuple[list[str], list[str], set[str]]:
    """What the outputs are computed from, whatever the names of constants; all nodes; the functions."""
    onnx.checker.check_model(ir.to_proto(model))
    known: dict[ir.Value | None, str] = {None: "", **{value: str(value.name) for value in model.graph.inputs}}
    for value in model.graph.initializers.values():
        known[value] = digest(value.const_value.numpy().tobytes(), value.const_value.dtype, value.const_value.shape)
    nodes = []
    for node in model.graph:
        attributes = sorted(str(each) for each in node.attributes.values() if each.type != ir.AttributeType.GRAPH)
        nodes.append(digest(node.op_type, attributes, [known[value] for value in node.inputs]))
        known.update({value: f"{nodes[-1]} {index}" for index, value in enumerate(node.outputs)})
    outputs = [f"{value.name} {known[value]}" for value in model.graph.outputs]
    return outputs, sorted(nodes), {str(key) for key in model.functions}


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


CASES = {
    "linears, static": (linears, by_insert_qdq, {}),
    "linears, per token": (linears, by_insert_qdq, {"activations": PER_TOKEN}),
    "linears, per tensor at run time": (linears, by_insert_qdq, {"activations": PER_TENSOR_DYNAMIC}),
    "convolutions": (convolutions, by_insert_qdq, {"bias_correction": "convolutions"}),
    "attention": (attention, by_all, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_restored_is_what_the_passes_make_when_they_ignore_it(case):
    make, quantize, settings = CASES[case]
    before = make()
    quantized = quantize(make(), frozenset(), **settings)
    names = [node.name for node in before.graph if node.name in set("abcd")]
    unchanged = contents(quantized), contents(before)
    for count in range(len(names) + 1):
        for chosen in map(frozenset, itertools.combinations(names, count)):
            assert contents(restored(quantized, before, chosen)) == contents(quantize(make(), chosen, **settings))
    assert (contents(quantized), contents(before)) == unchanged
    assert contents(restored(quantized, before, names)) == contents(before)


def test_layers_that_share_a_weight_are_one_group():
    model = linears()
    assert shared_weights(model, ["d", "b", "a", "c"]) == [frozenset("ad"), frozenset("bc")]
    assert shared_weights(model, ["d", "b", "x"]) == [frozenset("b"), frozenset("d"), frozenset("x")]


def test_a_constant_whose_name_is_taken_gets_another():
    before, quantized = linears(), by_insert_qdq(linears(), frozenset())
    quantized.graph.initializers["v.quantized"].name = "w"
    assert contents(restored(quantized, before, "ad")) == contents(by_insert_qdq(linears(), frozenset("ad")))


@pytest.mark.parametrize("recipe", ["w8a8-static", "smoothquant-o1", "smoothquant-o3"])
@few
@hypothesis.given(choices())
def test_any_model_with_all_layers_restored_is_the_float_model(recipe: str, drawn: Choices) -> None:
    model, data = build(drawn), feeds(2)
    work = Work.of(model.clone(), data, None, None, False, False, None)
    try:
        quantized = work.apply(Recipe.from_name(recipe))
    except NothingMatchedError:
        hypothesis.reject()
    before = work.log.before_loss
    found = [finding for findings in work.log.findings.values() for finding in findings]
    names = {finding.layer for finding in found if finding.action == "quantized"}
    for name in names:
        check_valid(restored(quantized, before, {name}), name)
    everything = restored(quantized, before, names)
    check_exact(difference([evaluate(model, data[0])], [evaluate(everything, data[0])]), "restoring")
    assert contents(restored(quantized, before, ())) == contents(quantized)
