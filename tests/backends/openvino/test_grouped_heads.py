"""Attention with fewer key heads than query heads, on batches and sequences of any size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")

from qcompile.backends.openvino import BACKEND
from qcompile.backends.openvino.grouped_heads import repeat_key_heads
from tests.backends.portable import parse, reference

SEPARATE = """(float[N,6,S,8] q, float[N,{keys},T,8] k, float[N,{keys},T,8] v) => (float[N,6,S,8] y)
{{ y = Attention (q, k, v) }}"""
FLAT = """(float[N,S,48] q, float[N,T,16] k, float[N,T,16] v) => (float[N,S,48] y)
{ y = Attention <q_num_heads = 6, kv_num_heads = 2> (q, k, v) }"""
CACHED = """(float[N,6,S,8] q, float[N,2,S,8] k, float[N,2,S,8] v, float[N,2,P,8] past_k, float[N,2,P,8] past_v)
=> (float[N,6,S,8] y, float[N,2,T,8] present_k, float[N,2,T,8] present_v)
{ y, present_k, present_v = Attention (q, k, v, , past_k, past_v) }"""


def feed(*shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip("qkv", shapes, strict=True)}


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (SEPARATE.format(keys=2), lambda n, s, t: ((n, 6, s, 8), (n, 2, t, 8), (n, 2, t, 8))),
        (SEPARATE.format(keys=1), lambda n, s, t: ((n, 6, s, 8), (n, 1, t, 8), (n, 1, t, 8))),
        (FLAT, lambda n, s, t: ((n, s, 48), (n, t, 16), (n, t, 16))),
    ],
    ids=["grouped", "one key head", "flat"],
)
def test_grouped_heads_run_with_any_batch_and_sequence(text, shapes) -> None:
    model = parse(text)
    session = BACKEND.open_session(model, threads=1)
    for sizes in [(2, 5, 5), (3, 4, 7), (1, 1, 9)]:
        values = feed(*shapes(*sizes))
        np.testing.assert_allclose(session.run(values)["y"], reference(model, values)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", [SEPARATE.format(keys=6), SEPARATE.format(keys="H"), CACHED])
def test_equal_or_unknown_heads_and_caches_stay(text: str) -> None:
    model = parse(text)
    before = ir.to_proto(model)
    repeat_key_heads(model)
    assert ir.to_proto(model) == before


def test_second_run_changes_nothing() -> None:
    for text in (SEPARATE.format(keys=2), FLAT):
        model = parse(text)
        repeat_key_heads(model)
        once = [node.op_type for node in model.graph]
        assert once.count("Gather") == 2
        repeat_key_heads(model)
        assert [node.op_type for node in model.graph] == once
