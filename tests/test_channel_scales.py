"""Channel scales through elementwise operators, norms, linears and convolutions, and what their constants become."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import channel_scales
from qcompile.graph import constant_array
from tests.scaled_models import NORM, X, check, parse, value_of

# name: (inputs, body, value, channel axis, number of free factors, absorbing operators)
PATHS = {
    "LayerNormalization": (
        f"{X}, float[8] wg, float[8] wb, float[8, 4] w1, float[8, 4] w2",
        "v = LayerNormalization(x, wg, wb) p = MatMul(v, w1) q = MatMul(v, w2) y = Add(p, q)",
        ("v", -1, 8, ["LayerNormalization"]),
    ),
    "RMSNormalization over two axes": (
        "float[batch, 4, 8] x, float[4, 8] wg, float[8, 4] w1",
        "v = RMSNormalization<axis = 1>(x, wg) y = MatMul(v, w1)",
        ("v", -1, 8, ["RMSNormalization"]),
    ),
    "norm with a constant of one element": (
        f"{X}, float[1] wg, float[8, 4] w1",
        "v = RMSNormalization(x, wg) y = MatMul(v, w1)",
        ("v", -1, 8, ["RMSNormalization"]),
    ),
    "linear with bias": (
        f"{X}, float[8, 6] w0, float[6] wb, float[6, 4] w1",
        "m = MatMul(x, w0) v = Add(m, wb) y = MatMul(v, w1)",
        ("v", -1, 6, ["Add", "MatMul"]),
    ),
    "scalar bias and scalar factor": (
        f"{X}, float[8, 6] w0, float wb, float wc, float[6, 4] w1",
        "m = MatMul(x, w0) c = Mul(m, wc) v = Add(c, wb) y = MatMul(v, w1)",
        ("v", -1, 6, ["Add", "MatMul"]),
    ),
    "scalar factor where the scale goes no further": (
        f"{X}, float wc, float[8, 4] w1",
        "e = Erf(x) v = Mul(e, wc) y = MatMul(v, w1)",
        ("v", -1, 8, ["Mul"]),
    ),
    "constant vector": (
        f"{X}, float[8] wc, float[8, 4] w1",
        "e = Erf(x) v = Mul(wc, e) y = MatMul(v, w1)",
        ("v", -1, 8, ["Mul"]),
    ),
    "division by a constant vector": (
        f"{X}, float[8, 6] w0, float[6] wc, float[6, 4] w1",
        "m = Erf(x) n = MatMul(m, w0) v = Div(n, wc) y = MatMul(v, w1)",
        ("v", -1, 6, ["Div"]),
    ),
    "residual of two linears": (
        f"{X}, float[8, 6] w0, float[8, 6] w1, float[6, 4] w2, float[6, 4] w3",
        "a = MatMul(x, w0) b = MatMul(x, w1) v = Sub(a, b) p = MatMul(v, w2) q = MatMul(b, w3) y = Add(p, q)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "Relu, LeakyRelu, Neg, Identity": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        "a = MatMul(x, w0) b = Relu(a) c = LeakyRelu(b) d = Neg(c) v = Identity(d) y = MatMul(v, w1)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "Relu squared by Pow": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        "a = MatMul(x, w0) b = Relu(a) e = Constant<value = float {2.0}>() v = Pow(b, e) y = MatMul(v, w1)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "Relu squared by Mul": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        "a = MatMul(x, w0) b = Relu(a) v = Mul(b, b) y = MatMul(v, w1)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "gate, the other way round too": (
        f"{X}, float[8, 6] w0, float[8, 6] w1, float[6, 4] w2",
        "g = MatMul(x, w0) s = Sigmoid(g) t = Mul(g, s) u = MatMul(x, w1) v = Mul(t, u) y = MatMul(v, w2)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "gate and up in one linear": (
        f"{X}, float[8, 12] w0, float[6, 4] w2",
        "f = MatMul(x, w0) u, g = Split<axis = -1, num_outputs = 2>(f) s = Sigmoid(g) v = Mul(u, s) y = MatMul(v, w2)",
        ("v", -1, 6, ["MatMul"]),
    ),
    "slices that both lead to the scaled value": (
        f"{X}, float[8, 12] w0, float[12, 4] w1",
        """f = MatMul(x, w0) b0 = Constant<value_ints = [0]>() b1 = Constant<value_ints = [5]>()
        b2 = Constant<value_ints = [99]>() a = Constant<value_ints = [-1]>()
        p = Slice(f, b0, b1, a) q = Slice(f, b1, b2, a) r = Relu(q) v = Concat<axis = 2>(r, p) y = MatMul(v, w1)""",
        ("v", -1, 12, ["MatMul"]),
    ),
    "Where and Max": (
        f"{X}, bool[batch, sequence, 1] c, float[8, 6] w0, float[6] wm, float wz, float[6, 4] w1",
        "a = MatMul(x, w0) b = Max(a, wm) v = Where(c, b, wz) y = MatMul(v, w1)",
        ("v", -1, 6, ["Max", "MatMul", "Where"]),
    ),
    "embedding": (
        "int64[batch, sequence] x, float[16, 6] w0, float[6, 4] w1",
        "v = Gather(w0, x) y = MatMul(v, w1)",
        ("v", -1, 6, ["Gather"]),
    ),
    "BatchNormalization": (
        "float[batch, 6, n] x, float[6] wg, float[6] wb, float[6] wm, float[6] v0, float[8, 6, 1] w1",
        "q = Mul(v0, v0) s = Add(q, q) v = BatchNormalization(x, wg, wb, wm, s) y = Conv(v, w1)",
        ("v", 1, 6, ["BatchNormalization"]),
    ),
    "through BatchNormalization's input": (
        """float[batch, 6, n] x, float[4, 6, 1] w0, float[4] wg, float[4] wb, float[4] wm, float[4] v0,
        float[8, 4, 1] w1""",
        "v = Conv(x, w0) q = Mul(v0, v0) b = BatchNormalization(v, wg, wb, wm, q) y = Conv(b, w1)",
        ("v", 1, 4, ["Conv"]),
    ),
    "grouped convolution, pooling, grouped transposed convolution": (
        "float[batch, 4, n] x, float[6, 2, 3] w0, float[6] wb, float[6, 2, 3] w1",
        "a = Conv<group = 2>(x, w0, wb) v = MaxPool<kernel_shape = [2]>(a) y = ConvTranspose<group = 3>(v, w1)",
        ("v", 1, 6, ["Conv"]),
    ),
    "transposed convolution, padding, global pooling, grouped convolution": (
        "float[batch, 4, n] x, float[4, 3, 3] w0, float[6] wb, float[6, 2, 1] w1",
        """a = ConvTranspose<group = 2>(x, w0, wb) n = Constant<value_ints = [0, 0, 1, 0, 0, 1]>() b = Pad(a, n)
        v = AveragePool<kernel_shape = [2]>(b) y = Conv<group = 3>(v, w1)""",
        ("v", 1, 6, ["ConvTranspose"]),
    ),
    "mean over the sequence": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        """a = MatMul(x, w0) n = Constant<value_ints = [1]>() v = ReduceMean(a, n) y = MatMul(v, w1)""",
        ("v", -1, 6, ["MatMul"]),
    ),
    "a reduction over no axes that keeps its input": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        """a = MatMul(x, w0) n = Constant<value = int64[0] {}>() v = ReduceMean<noop_with_empty_axes = 1>(a, n)
        y = MatMul(v, w1)""",
        ("v", -1, 6, ["MatMul"]),
    ),
    "padding of the axes that are named": (
        f"{X}, float[8, 6] w0, float[6, 4] w1",
        """a = MatMul(x, w0) n = Constant<value_ints = [1, -1]>() s = Constant<value_ints = [-2]>()
        v = Pad(a, n, , s) y = MatMul(v, w1)""",
        ("v", -1, 6, ["MatMul"]),
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_scale_of_a_value_is_taken_up_by_constants(name):
    inputs, body, expectation = PATHS[name]
    check(parse(inputs, body), *expectation)


def test_a_cast_to_a_type_that_holds_every_number_passes_the_scale_on():
    body = """a = MatMul(x, w0) b = Cast<to = 1>(a) v = Cast<to = 11>(b)
    d = Constant<value = double[4, 1] {1, 2, 3, 4}>() y = MatMul(v, d)"""
    check(parse(f"{X}, float[8, 4] w0", body, "double[?, ?, ?] y"), "v", -1, 4, ["MatMul"])


def test_a_constant_with_other_readers_is_copied_and_keeps_its_value_there():
    model = parse(NORM, "v = RMSNormalization(x, wg) p = MatMul(v, w1) n = Mul(x, wg) q = MatMul(n, w1) y = Add(p, q)")
    weight = constant_array(model.graph.initializers["w1"]).copy()
    check(model, "v", -1, 8, ["RMSNormalization"])
    np.testing.assert_array_equal(constant_array(model.graph.initializers["w1"]), weight)
    assert "wg.scaled" in model.graph.initializers
    assert "w1.scaled" in model.graph.initializers


def test_half_precision_constants_keep_their_type():
    model = parse(NORM, "v = RMSNormalization(x, wg) y = MatMul(v, w1)")
    gain = model.graph.initializers["wg"]
    gain.const_value = ir.tensor(constant_array(gain).astype(np.float16), name="wg")
    channel_scales.multiply_constant(value_of(model, "v").producer(), 1, np.full(8, 0.5))
    assert gain.const_value.dtype == ir.DataType.FLOAT16
    assert constant_array(gain).dtype == np.float16
