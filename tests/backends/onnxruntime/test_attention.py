from __future__ import annotations

import numpy as np
import pytest

from qcompile.backends.onnxruntime.attention import remove_head_transposes
from qcompile.rotary_caches import expand_caches
from tests.backends.onnxruntime.rewrites import check, refuses
from tests.backends.portable import attention_case, decoder_case, parse

TEXT = """(float[N,S,32] q, float[N,S,32] k, float[N,S,32] v) => (float[N,S,32] y)
{
    r_q = Reshape (q, heads)
    r_k = Reshape (k, heads)
    r_v = Reshape (v, heads)
    t_q = Transpose <perm = [0, 2, 1, 3]> (r_q)
    t_k = Transpose <perm = [0, 2, 1, 3]> (r_k)
    t_v = Transpose <perm = [0, 2, 1, 3]> (r_v)
    o = Attention (t_q, t_k, t_v)
    u = Transpose <perm = [0, 2, 1, 3]> (o)
    y = Reshape (u, flat)
}"""
SHAPES = {"heads": np.array([0, 0, 4, 8]), "flat": np.array([0, 0, 32])}
FEED = {name: np.random.default_rng(i).standard_normal((2, 5, 32)).astype(np.float32) for i, name in enumerate("qkv")}


def test_no_transpose_is_left() -> None:
    # The Reshape stays because it makes the output of the model.
    check(parse(TEXT, **SHAPES), FEED, {"Attention": 1, "Reshape": 1}, remove_head_transposes)


def test_reshape_behind_goes_when_the_result_is_read_inside() -> None:
    model = parse(TEXT.replace("y = Reshape (u, flat)", "w = Reshape (u, flat)\n y = Neg (w)"), **SHAPES)
    check(model, FEED, {"Attention": 1, "Neg": 1}, remove_head_transposes)


def test_norm_of_every_head_stays_before_the_reshape() -> None:
    """Query norms as in Qwen3: the heads are normalized one by one before they are transposed."""
    text = TEXT.replace("(r_q)", "(n_q)").replace("t_q = T", "n_q = RMSNormalization <axis = -1> (r_q, g)\n t_q = T")
    model = parse(text, **SHAPES, g=np.linspace(0.5, 2, 8, dtype=np.float32))
    expected = {"Attention": 1, "Reshape": 3, "RMSNormalization": 1}
    check(model, FEED, expected, remove_head_transposes)


def test_mask() -> None:
    case = attention_case()
    check(case.model, case.feed, {"Attention": 1, "Reshape": 1, "Expand": 1}, remove_head_transposes)


def test_rotary_embedding_moves_with_the_heads() -> None:
    case = decoder_case()
    expected = {"RotaryEmbedding": 2, "Attention": 1, "Reshape": 1, "Shape": 2, "Concat": 2, "Expand": 2}
    check(case.model, case.feed, expected, expand_caches, remove_head_transposes)


def test_flat_shape_from_other_sizes() -> None:
    """[batch * sequence, features]: the order of the elements is the same in both layouts."""
    text = TEXT.replace("float[N,S,32] y", "float[M,32] y")
    model = parse(text, heads=SHAPES["heads"], flat=np.array([-1, 32]))
    check(model, FEED, {"Attention": 1, "Reshape": 1}, remove_head_transposes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("t_k = Transpose <perm = [0, 2, 1, 3]> (r_k)", "t_k = Identity (r_k)"),
        ("u = Transpose", "n = Neg (o)\n u = Transpose"),
        ("y = Reshape (u, flat)", "w = Reshape (u, flat)\n n = Neg (u)\n m = Reshape (n, flat)\n y = Add (w, m)"),
        ("o = Attention", "o, past_k, past_v, products = Attention"),
        ("float[N,S,32] y", "float[N,S,32] y, float[N,4,S,8] o"),
        ("float[N,S,32] y", "float[N,S,32] y, float[N,S,4,8] u"),
    ],
    ids=["key not transposed", "read before", "read by another", "products", "output", "transposed output"],
)
def test_refuses(old: str, new: str) -> None:
    assert old in TEXT
    refuses(parse(TEXT.replace(old, new), **SHAPES), remove_head_transposes)


@pytest.mark.parametrize("flat", [np.array([0, 0, 0, -1]), np.array([0, -1, 0])])
def test_refuses_a_target_shape_that_copies_the_number_of_heads(flat: np.ndarray) -> None:
    text = TEXT.replace("y = Reshape", "w = Reshape").replace("(u, flat)", "(u, flat)\n y = Reshape (w, out)")
    refuses(parse(text, heads=SHAPES["heads"], flat=flat, out=np.array([0, -1, 32])), remove_head_transposes)


def test_refuses_an_unknown_number_of_heads() -> None:
    text = TEXT.replace("float[N,S,32] v)", "float[N,S,32] v, int64[4] heads)")
    refuses(parse(text, flat=SHAPES["flat"]), remove_head_transposes)


def test_target_shape_that_is_known_at_run_time_only() -> None:
    text = TEXT.replace("float[N,S,32] v)", "float[N,S,32] v, int64[3] flat)")
    feed = {**FEED, "flat": SHAPES["flat"]}
    check(parse(text, heads=SHAPES["heads"]), feed, {"Attention": 1, "Reshape": 1}, remove_head_transposes)


def test_refuses_a_target_shape_that_may_copy_the_number_of_heads() -> None:
    """With heads of size 1, a 0 at run time could stand for the 32 heads; it would then copy the 32 features."""
    text = TEXT.replace("float[N,S,32] v)", "float[N,S,32] v, int64[3] flat)")
    refuses(parse(text, heads=np.array([0, 0, 32, 1])), remove_head_transposes)


def test_values_with_other_sizes_than_keys() -> None:
    text = TEXT.replace("float[N,S,32] v", "float[N,S,64] v").replace("float[N,S,32] y", "float[N,S,64] y")
    text = text.replace("r_v = Reshape (v, heads)", "r_v = Reshape (v, wide)").replace("y = R", "w = R")
    text = text.replace("(u, flat)", "(u, flat)\n y = Neg (w)")
    model = parse(text, heads=SHAPES["heads"], wide=np.array([0, 0, 4, 16]), flat=np.array([0, 0, 64]))
    feed = {**FEED, "v": np.concatenate([FEED["v"], FEED["q"]], axis=-1)}
    check(model, feed, {"Attention": 1, "Neg": 1}, remove_head_transposes)


def test_heads_that_were_split_from_a_matrix() -> None:
    """q is [batch * sequence, features] in front of its Reshape: that cannot be read as three axes."""
    text = TEXT.replace("r_q = Reshape (q, heads)", "m = Reshape (q, matrix)\n r_q = Reshape (m, split)")
    model = parse(text, **SHAPES, matrix=np.array([-1, 32]), split=np.array([2, 5, 4, 8]))
    check(model, FEED, {"Attention": 1, "Reshape": 4}, remove_head_transposes)


def test_refuses_rotated_heads_with_another_reader() -> None:
    text = TEXT.replace("(t_q, t_k, t_v)", "(e_q, t_k, t_v)").replace(
        "o = A", "e_q = RotaryEmbedding (t_q, c, s)\n o = A"
    )
    text = text.replace("float[N,S,32] y", "float[N,S,32] y, float[N,4,S,8] e_q")
    angles = np.zeros((2, 5, 4), np.float32)
    refuses(parse(text, **SHAPES, c=angles, s=angles), remove_head_transposes)
