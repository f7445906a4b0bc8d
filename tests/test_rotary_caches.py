"""Caches of RotaryEmbedding that have to be expanded to the batch, run on the runtime that refuses others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from qcompile.rotary_caches import expand_caches
from tests.backends.onnxruntime.rewrites import check, operators, refuses, rewritten, run
from tests.backends.portable import parse, reference

TEXT = """({x} x, float[1,7,4] c, float[1,7,4] s) => (float[N,2,7,8] y, float[N,2,7,8] z)
{{
    y = RotaryEmbedding (x, c, s)
    n = Neg (x)
    z = RotaryEmbedding (n, c, s)
}}"""
RNG = np.random.default_rng(0)
FEED = {
    "x": RNG.standard_normal((3, 2, 7, 8)).astype(np.float32),
    "c": RNG.standard_normal((1, 7, 4)).astype(np.float32),
    "s": RNG.standard_normal((1, 7, 4)).astype(np.float32),
}


def test_the_runtime_refuses_caches_of_batch_one() -> None:
    """The reason of the rewrite: without it ONNX Runtime fails. When this test fails, the rewrite can go."""
    model = parse(TEXT.format(x="float[N,2,7,8]"))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(InvalidArgument, match="cos_cache"):
        session.run(None, FEED)


def test_caches_are_expanded_once_for_all_layers() -> None:
    expected = {"RotaryEmbedding": 2, "Neg": 1, "Shape": 2, "Concat": 2, "Expand": 2}
    check(parse(TEXT.format(x="float[N,2,7,8]")), FEED, expected, expand_caches)


def test_unknown_batch_is_not_shared() -> None:
    """Without inferred shapes, as in a model that was just loaded, two values may have different batches."""
    text = (
        TEXT.format(x="float[N,2,7,8]")
        .replace("y = Rotary", "u = Abs (x)\n y = Rotary")
        .replace("(x, c, s)", "(u, c, s)")
    )
    model = parse(text.replace("Neg (x)", "Neg (u)"))
    for _ in range(2):
        expand_caches(model)
        assert operators(model)["Expand"] == 4
    np.testing.assert_allclose(run(model, FEED)["z"], reference(model, FEED)["z"], rtol=0, atol=1e-5)


def test_batch_is_read_upstream() -> None:
    """A Shape that read the rotated value would keep it alive when Attention takes another layout of it."""
    text = (
        TEXT.format(x="float[N,2,7,8]")
        .replace("y = Rotary", "u = Abs (x)\n y = Rotary")
        .replace("(x, c, s)", "(u, c, s)")
    )
    after = rewritten(parse(text), expand_caches)
    shapes = [node.inputs[0].name for node in after.graph if node.op_type == "Shape" and node.inputs[0] is not None]
    assert shapes == ["x", "x"]


def test_refuses_a_static_batch_of_one() -> None:
    refuses(parse(TEXT.format(x="float[1,2,7,8]")), expand_caches)


def test_refuses_caches_that_are_read_through_position_ids() -> None:
    model = parse(
        """(float[N,2,7,8] x, float[9,4] c, float[9,4] s, int64[N,7] ids) => (float[N,2,7,8] y)
        { y = RotaryEmbedding (x, c, s, ids) }"""
    )
    refuses(model, expand_caches)


BRANCHES = """<ir_version: 10, opset_import: ["" : 23]>
g (float[N,2,7,8] x, float[M,2,7,8] z, float[1,7,4] c, float[1,7,4] s, bool yes) => (float y, float u, float v) {
    y = If (yes) <
        then_branch = then () => (float t) { t = RotaryEmbedding (x, c, s) },
        else_branch = other () => (float e) { e = RotaryEmbedding (x, c, s) }
    >
    u = RotaryEmbedding (x, c, s)
    v = RotaryEmbedding (z, c, s)
}"""


def test_two_batches_and_branches_have_caches_of_their_own() -> None:
    model = ir.from_onnx_text(BRANCHES)
    assert len(expand_caches(model)) == 4
    assert operators(model)["Expand"] == 4  # cos and sin, for N and for M
    names = [value.name for node in model.graph.all_nodes() for value in node.outputs]
    assert len(names) == len(set(names))
    for yes in (True, False):
        feed = {"x": FEED["x"], "z": FEED["x"][:2], "c": FEED["c"], "s": FEED["s"], "yes": np.array(yes)}
        result = run(model, feed)
        np.testing.assert_array_equal(result["y"], result["u"])
        np.testing.assert_array_equal(result["v"], result["u"][:2])
    assert expand_caches(model) == []
