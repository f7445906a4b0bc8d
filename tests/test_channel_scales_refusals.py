"""What forbids a channel scale is named."""

import pytest

from qcompile import channel_scales
from qcompile.channel_scales import Placement, Refusal
from tests.scaled_models import NORM, X, parse, value_of

REFUSALS = {
    "no operator for it": (NORM, "v = Gelu(x) y = MatMul(v, w1)", "Gelu"),
    "an input of the graph": (NORM, "v = Identity(x) y = MatMul(v, w1)", "'x' is an input of the graph"),
    "an output of the graph": (NORM, "y = RMSNormalization(x, wg) v = Identity(y)", "'y' is an output of the graph"),
    "the residual of a post-norm encoder": (
        NORM,
        "v = RMSNormalization(x, wg) a = MatMul(v, w0) r = Add(v, a) n = RMSNormalization(r, wg) y = MatMul(n, w1)",
        "RMSNormalization",
    ),
    "another reader": (NORM, "v = RMSNormalization(x, wg) a = MatMul(v, w0) e = Erf(v) y = Add(a, e)", "Erf"),
    "both operands": (NORM, "a = MatMul(x, w0) b = Relu(a) v = Mul(a, b) y = MatMul(v, w1)", "both operands"),
    "different powers": (NORM, "a = MatMul(x, w0) b = Mul(a, a) v = Add(a, b) y = MatMul(v, w1)", "different powers"),
    "a divisor": (NORM, "a = MatMul(x, w0) v = Relu(a) s = Sigmoid(x) b = Div(s, v) y = MatMul(b, w1)", "divisor"),
    "a divided constant": (
        NORM + ", float[8] wn",
        "a = MatMul(x, w0) v = Relu(a) b = Div(wn, v) y = MatMul(b, w1)",
        "divides by",
    ),
    "integers": (NORM, "v = MatMul(x, w0) b = Cast<to = 7>(v) y = Cast<to = 1>(b)", "integers"),
    "a negative power": (
        NORM + ", float[1] wn",
        "a = MatMul(x, w0) n = Neg(wn) s = Abs(wn) v = Pow(a, n) y = MatMul(v, w1)",
        "exponent",
    ),
    "mixed channels": (
        NORM,
        "v = RMSNormalization(x, wg) t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(v, t)",
        "mixes",
    ),
    "channels that became rows": (
        "float[batch, 8, 8] x, float[8] wg, float[8, 8] w1",
        "v = RMSNormalization(x, wg) t = Transpose<perm = [0, 2, 1]>(v) y = MatMul(t, w1)",
        "mixes channels",
    ),
    "two scaled factors of a MatMul": (
        NORM,
        "a = MatMul(x, w0) v = Relu(a) t = Transpose<perm = [0, 2, 1]>(a) y = MatMul(v, t)",
        "MatMul",
    ),
    "a reduction over channels": (
        NORM,
        "v = RMSNormalization(x, wg) n = Constant<value_ints = [-1]>() y = ReduceMean(v, n)",
        "mixes channels",
    ),
    "a broadcast factor": (
        NORM,
        """n = Constant<value_ints = [-1]>() m = ReduceMean(x, n) e = Exp(m) s = Sigmoid(x) v = Mul(s, e)
        y = MatMul(v, w1)""",
        "Sigmoid",
    ),
    "channels that a Reshape cuts": (
        NORM,
        "a = MatMul(x, w0) v = Relu(a) n = Constant<value_ints = [0, -1, 3]>() y = Reshape(v, n)",
        "Reshape",
    ),
    "a cache": (
        f"{X}, float[batch, 2, past, 4] p, float[8, 8] w0, float[8, 8] w1",
        """a = MatMul(x, w0) v = Attention<q_num_heads = 2, kv_num_heads = 2>(a, a, x, , p, p) y = MatMul(v, w1)""",
        "cache",
    ),
    "keys": (
        f"{X}, float[8, 8] w0, float[8, 8] w1",
        """a = MatMul(x, w0) v = Attention<q_num_heads = 2, kv_num_heads = 2>(x, a, a) y = MatMul(v, w1)""",
        "something else",
    ),
    "a pad that is not zero": (
        NORM,
        """v = MatMul(x, w0) n = Constant<value_ints = [0, 1, 0, 0, 1, 0]>() one = Constant<value = float {1.0}>()
        y = Pad(v, n, one)""",
        "zero",
    ),
    "a pad that shifts the channels": (
        NORM,
        "v = MatMul(x, w0) n = Constant<value_ints = [0, 0, 1, 0, 0, -1]>() y = Pad(v, n)",
        "mixes channels",
    ),
    "a pad of one named axis": (
        NORM,
        """v = MatMul(x, w0) n = Constant<value_ints = [1, -1]>() a = Constant<value_ints = [-1]>()
        y = Pad(v, n, , a)""",
        "mixes channels",
    ),
    "computed pads": (f"{NORM}, int64[6] n", "v = MatMul(x, w0) y = Pad(v, n)", "mixes channels"),
    "a reduction over no axes, which is one over all": (
        NORM,
        "v = MatMul(x, w0) n = Constant<value = int64[0] {}>() y = ReduceMean(v, n)",
        "mixes channels",
    ),
    "a reduction without axes": (NORM, "v = MatMul(x, w0) y = ReduceMean(v)", "mixes channels"),
    "pooling along the scaled axis": (
        NORM,
        "a = MatMul(x, w0) v = MaxPool<kernel_shape = [3], pads = [1, 1]>(a) y = MatMul(v, w1)",
        "mixes channels",
    ),
    "a cast to fewer bits": (
        NORM,
        "v = MatMul(x, w0) h = Cast<to = 10>(v) f = Cast<to = 1>(h) y = MatMul(f, w1)",
        "rounds the scaled value to FLOAT16",
    ),
    "a cast to bfloat16": (
        NORM,
        "v = MatMul(x, w0) h = Cast<to = 16>(v) y = Cast<to = 1>(h)",
        "rounds the scaled value to BFLOAT16",
    ),
    "one channel read twice": (
        NORM,
        "a = MatMul(x, w0) i = Constant<value_ints = [0, 0, 1]>() v = Gather<axis = 2>(a, i) y = Relu(v)",
        "twice",
    ),
    "a constant that would grow": (
        "float[batch, 3, 8] x, float[8, 6] w0, float[3, 1] wc, float[6, 4] w1",
        "a = MatMul(x, w0) v = Add(a, wc) y = MatMul(v, w1)",
        "would grow",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_names_what_forbids_the_scale(name):
    inputs, body, reason = REFUSALS[name]
    model = parse(inputs, body)
    answer = channel_scales.solve(value_of(model, "v"), -1)
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


def test_batch_normalization_in_training_mode_is_refused():
    inputs = "float[batch, 6, n] x, float[8, 6, 1] wk, float[8] wg, float[8] wb, float[8] wm, float[8] wv"
    body = "v = Conv(x, wk) y, m, s = BatchNormalization<training_mode = {}>(v, wg, wb, wm, wv)"
    inference = parse(inputs, body.format(0).replace("y, m, s", "y"))
    assert isinstance(channel_scales.solve(value_of(inference, "v"), 1), Placement)
    answer = channel_scales.solve(value_of(parse(inputs, body.format(1)), "v"), 1)
    assert isinstance(answer, Refusal)
    assert "training mode" in answer.reason


def test_an_unknown_shape_is_refused():
    model = parse(NORM, "a = MatMul(x, w0) v = Relu(a) y = MatMul(v, w1)")
    value_of(model, "a").shape = None
    answer = channel_scales.solve(value_of(model, "v"), -1)
    assert isinstance(answer, Refusal)
    assert "shape of 'a'" in answer.reason


def test_a_reader_in_a_subgraph_is_refused():
    body = """v = RMSNormalization(x, wg) c = Constant<value = bool {1}>()
    y = If<then_branch = t () => (float[?, ?, 4] p) { p = MatMul(v, w1) },
           else_branch = e () => (float[?, ?, 4] q) { q = MatMul(v, w1) }>(c)"""
    answer = channel_scales.solve(value_of(parse(NORM, body), "v"), -1)
    assert isinstance(answer, Refusal)
    assert "subgraph" in answer.reason
