import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from qcompile import channel_scales
from qcompile.channel_scales import Placement, Refusal
from qcompile.graph import constant_array


def parse(inputs, body, outputs="float[?, ?, ?] y", opset=23):
    """Model whose inputs named w... are random constants."""
    text = f'<ir_version: 10, opset_import: ["": {opset}]> main ({inputs}) => ({outputs}) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    generator = np.random.default_rng(1)
    for value in [value for value in model.graph.inputs if value.name.startswith("w")]:
        model.graph.inputs.remove(value)
        array = generator.uniform(0.5, 1.5, value.shape.numpy()) * generator.choice([-1, 1], value.shape.numpy())
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return ShapeInferencePass()(model).model


def value_of(model, name):
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def run(model, feed, *names):
    """Outputs of the model, then the named values."""
    copy = model.clone()
    copy.graph.outputs.extend(value_of(copy, name) for name in names)
    proto = ir.to_proto(copy)
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)


X = "float[batch, sequence, 8] x"
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
}


@pytest.mark.parametrize("name", PATHS)
def test_the_scale_of_a_value_is_taken_up_by_constants(name):
    inputs, body, expectation = PATHS[name]
    check(parse(inputs, body), *expectation)


def check(model, name, axis, count, absorbers):
    feed = {value.name: sample(value) for value in model.graph.inputs}
    answer = channel_scales.solve(value_of(model, name), axis)
    assert isinstance(answer, Placement), answer
    assert answer.group_count == count
    assert sorted({node.op_type for node in answer.absorbers}) == sorted(absorbers)
    *outputs, before = run(model, feed, name)
    factors = np.exp(np.random.default_rng(0).normal(size=count))
    channel_scales.multiply(answer, factors)
    *scaled_outputs, after = run(model, feed, name)
    shape = np.ones(before.ndim, int)
    shape[axis] = -1
    np.testing.assert_allclose(after, before * factors[answer.groups].reshape(shape), rtol=1e-4, atol=1e-5)
    for output, expected in zip(scaled_outputs, outputs, strict=True):
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def sample(value):
    generator = np.random.default_rng(2)
    shape = [dim if isinstance(dim, int) else {"batch": 2, "sequence": 5}.get(dim.value, 7) for dim in value.shape.dims]
    if value.dtype == ir.DataType.INT64:
        return generator.integers(0, 4, shape)
    if value.dtype == ir.DataType.BOOL:
        return generator.random(shape) < 0.5
    return generator.normal(size=shape).astype(np.float32)


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


NORM = f"{X}, float[8] wg, float[8, 8] w0, float[8, 4] w1"
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
