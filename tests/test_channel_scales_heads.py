"""Channel scales through the heads of attention, into what makes v."""

import pytest

from tests.scaled_models import X, check, parse

SPLIT_HEADS = """
    {0}n = Constant<value_ints = [0, 0, -1, 4]>() {0}r = Reshape({0}, {0}n)
    {0}t = Transpose<perm = [0, 2, 1, 3]>({0}r)
"""
JOIN_HEADS = """
    ot = Transpose<perm = [0, 2, 1, 3]>(o) on = Constant<value_ints = [0, 0, -1]>() v = Reshape(ot, on)
    y = MatMul(v, wo)
"""
LINEAR_QKV = "q = MatMul(x, wq) k = MatMul(x, wk) w = MatMul(x, wv)"
HEADS = {
    "4-D": (
        f"{X}, float[8, 12] wq, float[8, 12] wk, float[8, 12] wv, float[12, 4] wo",
        LINEAR_QKV + "".join(map(SPLIT_HEADS.format, "qkw")) + "o = Attention(qt, kt, wt)" + JOIN_HEADS,
        ("v", -1, 12, ["MatMul"]),
    ),
    "4-D, grouped queries": (
        f"{X}, float[8, 24] wq, float[8, 8] wk, float[8, 8] wv, float[24, 4] wo",
        LINEAR_QKV + "".join(map(SPLIT_HEADS.format, "qkw")) + "o = Attention(qt, kt, wt)" + JOIN_HEADS,
        ("v", -1, 8, ["MatMul"]),
    ),
    "3-D, grouped queries": (
        f"{X}, float[8, 24] wq, float[8, 8] wk, float[8, 8] wv, float[24, 4] wo",
        LINEAR_QKV + "v = Attention<q_num_heads = 6, kv_num_heads = 2>(q, k, w) y = MatMul(v, wo)",
        ("v", -1, 8, ["MatMul"]),
    ),
    "repeated by Unsqueeze, Expand and Reshape": (
        f"{X}, float[8, 24] wq, float[8, 24] wk, float[8, 8] wv, float[24, 4] wo",
        LINEAR_QKV
        + "".join(map(SPLIT_HEADS.format, "qkw"))
        + """a = Constant<value_ints = [2]>() wu = Unsqueeze(wt, a) e = Constant<value_ints = [1, 2, 3, 1, 4]>()
        we = Expand(wu, e) n = Constant<value_ints = [0, 6, -1, 4]>() wx = Reshape(we, n)
        o = Attention(qt, kt, wx)"""
        + JOIN_HEADS,
        ("v", -1, 8, ["MatMul"]),
    ),
    "MatMul, Softmax, MatMul on batch * heads": (
        f"{X}, float[8, 12] wq, float[8, 12] wk, float[8, 12] wv, float[12, 4] wo",
        LINEAR_QKV
        + "".join(map(SPLIT_HEADS.format, "qkw"))
        + """s = Shape<end = 1>(x) three = Constant<value_ints = [3]>() m = Mul(s, three)
        l = Shape<start = 1, end = 2>(x) four = Constant<value_ints = [4]>() f = Concat<axis = 0>(m, l, four)
        qf = Reshape(qt, f) kf = Reshape(kt, f) wf = Reshape(wt, f)
        ks = Transpose<perm = [0, 2, 1]>(kf) c = MatMul(qf, ks) p = Softmax(c) b = MatMul(p, wf)
        g = Concat<axis = 0>(s, three, l, four) o = Reshape(b, g)"""
        + JOIN_HEADS,
        ("v", -1, 12, ["MatMul"]),
    ),
    "q, k and v interleaved in one linear": (
        f"{X}, float[8, 36] wf, float[36] wb, float[12, 4] wo",
        """f = MatMul(x, wf) fb = Add(f, wb) n = Constant<value_ints = [0, 0, 3, 3, 4]>() r = Reshape(fb, n)
        i0 = Constant<value = int64 {0}>() i1 = Constant<value = int64 {1}>() i2 = Constant<value_ints = [-1]>()
        q = Gather<axis = 3>(r, i0) k = Gather<axis = 3>(r, i1) u = Gather<axis = 3>(r, i2)
        a = Constant<value_ints = [3]>() w = Squeeze(u, a)
        qt = Transpose<perm = [0, 2, 1, 3]>(q) kt = Transpose<perm = [0, 2, 1, 3]>(k)
        wt = Transpose<perm = [0, 2, 1, 3]>(w) o = Attention(qt, kt, wt)"""
        + JOIN_HEADS,
        ("v", -1, 12, ["Add", "MatMul"]),
    ),
    "one key-value head picked by GatherND": (
        f"{X}, float[8, 20] wf, float[12, 4] wo",
        """f = MatMul(x, wf) n = Constant<value_ints = [0, 0, 5, 4]>() r = Reshape(f, n)
        t = Transpose<perm = [2, 0, 1, 3]>(r) i = Constant<value = int64[3, 1] {0, 1, 2}>()
        j = Constant<value = int64[1, 1] {3}>() l = Constant<value = int64[1, 1] {-1}>()
        q = GatherND(t, i) k = GatherND(t, j) w = GatherND(t, l)
        qt = Transpose<perm = [1, 0, 2, 3]>(q) kt = Transpose<perm = [1, 0, 2, 3]>(k)
        wt = Transpose<perm = [1, 0, 2, 3]>(w) o = Attention(qt, kt, wt)"""
        + JOIN_HEADS,
        ("v", -1, 4, ["MatMul"]),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_scale_of_attention_goes_into_v(name):
    inputs, body, expectation = HEADS[name]
    check(parse(inputs, body), *expectation)
