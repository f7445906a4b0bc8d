"""Heads of one linear are rotated by one operator, and those of the values by nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from qcompile.backends.openvino.joined_heads import rotate_together
from qcompile.reference_evaluator import evaluate
from tests.backends.portable import parse

SIZE = 8
RNG = np.random.default_rng(4)
ANGLES = RNG.uniform(0, 6, (2, 5, SIZE // 2)).astype(np.float32)
FEED = {
    "x": RNG.standard_normal((2, 5, 8 * SIZE)).astype(np.float32),
    "cosines": np.cos(ANGLES),
    "sines": np.sin(ANGLES),
    "angles": ANGLES,
}


def heads(
    query: str = "RotaryEmbedding (tq, cosines, sines)",
    key: str = "RotaryEmbedding (tk, cosines, sines)",
) -> ir.Model:
    """Four query heads, two of keys and of values; the rotations come before what they are computed from."""
    model = parse(
        f"(float[N,S,{8 * SIZE}] x, float[N,S,{SIZE // 2}] cosines, float[N,S,{SIZE // 2}] sines,"
        f" float[N,S,{SIZE // 2}] angles)"
        " => (float[N,A,B,C] yq, float[N,D,E,F] yk, float[N,G,H,I] yv) {"
        " q, k, v = Split <axis = -1> (x, widths)"
        " sq = Reshape (q, four) sk = Reshape (k, two) sv = Reshape (v, pair)"
        f" tq = Transpose <perm = [0, 2, 1, 3]> (sq) tk = Transpose <perm = [0, 2, 1, 3]> (sk)"
        " tv = Transpose <perm = [0, 2, 1, 3]> (sv) other = Cos (angles)"
        f" rq = {query} rk = {key} yq = Relu (rq) yk = Relu (rk) yv = Relu (tv) }}",
        widths=np.array([4 * SIZE, 2 * SIZE, 2 * SIZE]),
        four=np.array([0, 0, 4, SIZE]),
        two=np.array([0, 0, 2, SIZE]),
        pair=np.array([0, 0, 2, SIZE]),
    )
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def rotated(model: ir.Model) -> Counter[str]:
    """Rewrite, check that the model is valid and computes the same; return its operators."""
    expected = evaluate(model, FEED)
    rotate_together(model)
    common.CheckerPass(full_check=True)(model)
    for name, array in evaluate(model, FEED).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(evaluate(model, FEED)["yv"], expected["yv"])
    return Counter(node.op_type for node in model.graph)


def test_one_rotation_of_all_heads() -> None:
    operators = rotated(heads())
    assert (operators["Reshape"], operators["Transpose"], operators["RotaryEmbedding"]) == (1, 1, 0)


def test_keys_may_be_as_they_are_like_values() -> None:
    assert rotated(heads(key="Neg (tk)"))["Reshape"] == 1


def test_second_run_changes_nothing() -> None:
    model = heads()
    assert rotated(model) == rotated(model)


@pytest.mark.parametrize(
    "different",
    [
        {"key": "RotaryEmbedding (tk, other, sines)"},
        {"key": "RotaryEmbedding <interleaved = 1> (tk, cosines, sines)"},
        {"key": "Neg (tk)", "query": "Neg (tq)"},
    ],
    ids=["other angles", "neighbours", "no rotation"],
)
def test_other_heads_stay(different: dict[str, str]) -> None:
    model = heads(**different)
    before = Counter(node.op_type for node in model.graph)
    assert rotated(model) == before
