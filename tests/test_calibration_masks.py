"""Padding masks are found by what reaches the attention, and by nothing else."""

import onnx
import onnx_ir as ir
import pytest

from qcompile.calibration_masks import PaddingMask, padding_masks


def found(
    body, inputs="int64[batch, sequence] m", constants="float low = {-3.4e38}, float one = {1}, float zero = {0}"
):
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        main ({inputs}, float[batch, heads, sequence, sequence] scores, float[batch, heads, sequence, 8] q)
            => (float[a, b, c, d] y)
        <{constants}, int64[2] axes = {{1, 2}}, int64[1] first = {{1}}> {{ {body} }}
    """
    return padding_masks(ir.from_proto(onnx.parser.parse_model(text)))


VALID, PADDING = (PaddingMask("m", 1),), (PaddingMask("m", 0),)
TO_GRID = "u = Unsqueeze(m, axes) "


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("b = Cast<to=9>(u) y = Attention(q, q, q, b)", VALID),
        ("b = Cast<to=9>(u) n = Not(b) y = Attention(q, q, q, n)", PADDING),
        ("f = Cast<to=1>(u) d = Sub(one, f) a = Mul(d, low) s = Add(scores, a) y = Softmax(s)", VALID),
        ("f = Cast<to=1>(u) a = Mul(f, low) s = Add(a, scores) y = Softmax(s)", PADDING),
        ("b = Cast<to=9>(u) s = Where(b, scores, low) y = Softmax(s)", VALID),
        ("b = Cast<to=9>(u) s = Where(b, low, scores) y = Softmax(s)", PADDING),
        ("f = Cast<to=1>(u) e = Equal(f, zero) a = Where(e, low, zero) y = Attention(q, q, q, a)", VALID),
        ("f = Cast<to=1>(u) g = Greater(f, zero) a = Where(g, low, zero) y = Attention(q, q, q, a)", PADDING),
        ("f = Cast<to=1>(u) n = Neg(f) a = Mul(n, low) y = Attention(q, q, q, a)", VALID),
        # joined with a causal mask that is computed
        ("b = Cast<to=9>(u) c = GreaterOrEqual(scores, zero) j = And(c, b) y = Attention(q, q, q, j)", VALID),
        (
            "b = Cast<to=9>(u) n = Not(b) c = Less(scores, zero) j = Or(n, c) i = Not(j) y = Attention(q, q, q, i)",
            VALID,
        ),
        (
            "f = Cast<to=1>(u) d = Sub(one, f) a = Mul(d, low) c = Abs(scores) j = Min(c, a) y = Attention(q, q, q, j)",
            VALID,
        ),
        ("f = Cast<to=1>(u) j = Min(scores, f) y = Attention(q, q, q, j)", VALID),
        ("f = Cast<to=1>(u) n = Neg(f) j = Max(n, scores) y = Attention(q, q, q, j)", PADDING),
        # moved: the new shape may come from anything, the elements may not
        ("s = Shape(scores) b = Cast<to=9>(u) e = Expand(b, s) y = Attention(q, q, q, e)", VALID),
        ("i = Identity(u) t = Transpose<perm=[0, 1, 2, 3]>(i) b = Cast<to=9>(t) y = Attention(q, q, q, b)", VALID),
        ("f = Cast<to=1>(u) d = Sub(one, f) w = Expand(low, first) a = Mul(d, w) y = Attention(q, q, q, a)", VALID),
        # does not get there
        ("s = Shape(m) e = Expand(one, s) y = Attention(q, q, q, e)", ()),
        ("g = Gather<axis=0>(q, m) y = Attention(q, q, q, g)", ()),
        ("f = Cast<to=1>(u) x = MatMul(f, q) y = Softmax(x)", ()),
        ("f = Cast<to=1>(u) x = Mul(f, q) y = Attention(x, x, x)", ()),
        ("f = Cast<to=1>(u) y = Mul(f, q)", ()),
        ("b = Cast<to=9>(u) s = Where(b, scores, scores) y = Softmax(s)", ()),
        ("f = Cast<to=1>(u) z = Mul(f, zero) s = Add(scores, z) y = Softmax(s)", ()),
    ],
)
def test_dataflow(body, expected):
    assert found(TO_GRID + body) == expected


REACHES = "u = Unsqueeze(m, axes) b = Cast<to=9>(u) y = Attention(q, q, q, b)"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("int64[2, 7] m", VALID),
        ("int64[?, ?] m", VALID),
        ("float[batch, sequence] m", VALID),
        ("int64[sequence, sequence] m", ()),  # a pattern of attention, not of padding
        ("int64[batch, 1, sequence] m", ()),
    ],
)
def test_only_inputs_of_two_different_dims(inputs, expected):
    assert found(REACHES, inputs) == expected


def test_every_mask_is_found():
    body = REACHES.replace("y", "x") + " v = Unsqueeze(n, axes) c = Cast<to=9>(v) y = Attention(x, q, q, c)"
    masks = found(body, "int64[batch, sequence] m, int64[batch, other] n")
    assert masks == (PaddingMask("m"), PaddingMask("n"))
