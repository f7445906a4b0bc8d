"""One attention over a cache, as decoders have it, and what of it the tests change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from tests.backends.portable import parse

TEXT = """(float[B,S,64] q, float[B,S,32] k, float[B,S,32] v, int64[B,T] padding, int64[B,S] positions,
           float[B,2,P,16] past_k, float[B,2,P,16] past_v)
    => (float[B,S,64] y, float[B,2,T,16] new_k, float[B,2,T,16] new_v)
{
    size = Shape <start = 1, end = 2> (q)
    s = Squeeze (size)
    before = Shape <start = 2, end = 3> (past_k)
    p = Squeeze (before)
    t = Add (s, p)
    keys = Range (zero, t, one)
    steps = Range (zero, s, one)
    queries = Add (steps, p)
    rows = Unsqueeze (queries, axes_q)
    columns = Unsqueeze (keys, axes_k)
    causal = LessOrEqual (columns, rows)
    tokens = Cast <to = 9> (padding)
    real = Unsqueeze (tokens, axes_t)
    mask = And (causal, real)
    number = Cast <to = 1> (positions)
    column = Unsqueeze (number, axis)
    angles = Mul (column, frequencies)
    cos = Cos (angles)
    sin = Sin (angles)
    r_q = RotaryEmbedding <num_heads = 4> (q, cos, sin)
    r_k = RotaryEmbedding <num_heads = 2> (k, cos, sin)
    y, new_k, new_v = Attention <q_num_heads = 4, kv_num_heads = 2> (r_q, r_k, v, mask, past_k, past_v)
}"""

CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "axis": np.array([2]),
    "axes_q": np.array([0, 1, 3]),
    "axes_k": np.array([0, 1, 2]),
    "axes_t": np.array([1, 2]),
    "frequencies": (10.0 ** -np.arange(0, 2, 0.25)).astype(np.float32),
}


def case(*changes: tuple[str, str], **constants: np.ndarray) -> ir.Model:
    """Return the model of the text, with shapes and with parts of it replaced; each of them must be there."""
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    model = parse(text, **CONSTANTS, **constants)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def feed(sequence: int, past: int) -> dict[str, np.ndarray]:
    """Two samples; of a longer prompt the second has padding on the right."""
    generator = np.random.default_rng(sequence)

    def numbers(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    padding = np.ones((2, past + sequence), np.int64)
    padding[1, past + sequence - (2 if sequence > 2 else 0) :] = 0
    positions = np.tile(np.arange(past, past + sequence), (2, 1))
    made = {"q": numbers(2, sequence, 64), "k": numbers(2, sequence, 32), "v": numbers(2, sequence, 32)}
    cache = {"past_k": numbers(2, 2, past, 16), "past_v": numbers(2, 2, past, 16)}
    return {**made, "padding": padding, "positions": positions, **cache}
