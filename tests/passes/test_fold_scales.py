import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.graph import constant_array
from qcompile.passes.fold_scales import FoldScales

INPUT = "float[batch, sequence, 4] x"
C = "float[4] c = {0.5, 2.0, 4.0, 0.25}"
W = "float[4, 3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, float[4, 2] w2 = {1,-2,3,-4,5,-6,7,-8}"
G = "float[4] g = {1, 2, 3, 4}"


def parse(body, constants, inputs=INPUT):
    text = f'<ir_version: 10, opset_import: ["": 23]> main ({inputs}) => (y) <{constants}> {{ {body} }}'
    text = text.replace("(y)", "(float[?, ?, ?] y)")
    return ShapeInferencePass()(ir.from_proto(onnx.parser.parse_model(text))).model


def run(model, *, shape=(2, 5, 4)):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


def fold(model, **options):
    """Findings, after the checks that hold for every model."""
    before = run(model, **options)
    result = FoldScales()(model)
    np.testing.assert_allclose(run(model, **options), before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert result.modified == any(finding.action == "folded" for finding in result.findings)
    again = FoldScales()(model)
    assert not again.modified
    assert [finding.action for finding in again.findings] == [
        f.action for f in result.findings if f.action == "explicit"
    ]
    return [(finding.layer, finding.action, finding.reason) for finding in result.findings]


def operators(model):
    return [node.op_type for node in model.graph]


def test_the_mul_between_a_norm_and_its_linears_goes_into_the_norm():
    model = parse(
        "n = RMSNormalization(x, g) m = Mul(n, c) a = MatMul(m, w) b = MatMul(m, w2) y = Concat<axis = 2>(a, b)",
        f"{C}, {W}, {G}",
    )
    (finding,) = fold(model)
    assert finding == ("a", "folded", "into RMSNormalization n, for a, b")
    assert operators(model) == ["RMSNormalization", "MatMul", "MatMul", "Concat"]
    np.testing.assert_allclose(constant_array(model.graph.initializers["g"]), [0.5, 4, 12, 1])
    np.testing.assert_array_equal(constant_array(model.graph.initializers["w"])[0], [1, 2, 3])
    assert "c" not in model.graph.initializers


def test_a_linear_that_reads_the_unscaled_value_makes_up_for_it():
    model = parse(
        "n = RMSNormalization(x, g) m = Mul(c, n) a = MatMul(m, w) b = MatMul(n, w2) y = Concat<axis = 2>(a, b)",
        f"{C}, {W}, {G}",
    )
    assert [action for _, action, _ in fold(model)] == ["folded"]
    np.testing.assert_allclose(constant_array(model.graph.initializers["w2"])[0], [2, -4])


def test_two_muls_of_one_value_fold_both():
    model = parse(
        """n = RMSNormalization(x, g) m = Mul(n, c) k = Mul(n, d)
        a = MatMul(m, w) b = MatMul(k, w2) y = Concat<axis = 2>(a, b)""",
        f"{C}, float[1, 1, 4] d = {{3, 1, 2, 5}}, {W}, {G}",
    )
    assert [action for _, action, _ in fold(model)] == ["folded", "folded"]
    assert "Mul" not in operators(model)


def test_muls_that_share_their_constant_leave_nothing_behind():
    model = parse(
        """n = RMSNormalization(x, g) e = RMSNormalization(x, h) m = Mul(n, c) k = Mul(e, c)
        a = MatMul(m, w) b = MatMul(k, w2) y = Concat<axis = 2>(a, b)""",
        f"{C}, {W}, {G}, float[4] h = {{4, 3, 2, 1}}",
    )
    assert [action for _, action, _ in fold(model)] == ["folded", "folded"]
    assert set(model.graph.initializers) == {"g", "h", "w", "w2"}


def test_a_convolution_takes_the_factor_of_its_output_channels():
    model = parse(
        "n = Conv(x, k) m = Mul(n, c) y = Conv(m, l)",
        """float[3, 5, 1] k = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float[3, 1] c = {0.5, 2.0, 3.0},
        float[2, 3, 1] l = {1,2,3,4,5,6}""",
        "float[batch, 5, n] x",
    )
    ((_, action, reason),) = fold(model, shape=(2, 5, 4))
    assert (action, reason) == ("folded", "into Conv n, for y")
    assert operators(model) == ["Conv", "Conv"]


REFUSALS = {
    "no absorber": ("n = Erf(x) m = Mul(n, c) y = MatMul(m, w)", "Erf"),
    "the raw residual stream": (
        "r = RMSNormalization(x, g) a = Add(r, x) m = Mul(a, c) y = MatMul(m, w)",
        "input of the graph",
    ),
    "a negative factor": ("n = RMSNormalization(x, g) m = Mul(n, z) y = MatMul(m, w)", "positive"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mul_that_has_no_other_place_stays_and_says_why(name):
    body, reason = REFUSALS[name]
    model = parse(body, f"{C}, {W}, {G}, float[4] z = {{1, -1, 1, 1}}")
    before = operators(model)
    ((_, action, given),) = fold(model)
    assert action == "explicit"
    assert reason in given
    assert operators(model) == before


def heads(factors):
    """Two query heads of 2 channels read one key-value head; the Mul stands before the output projection."""
    return parse(
        """q = MatMul(x, w4) k = MatMul(x, w2) v = MatMul(x, w2)
        a = Attention<q_num_heads = 2, kv_num_heads = 1>(q, k, v) m = Mul(a, f) y = MatMul(m, w)""",
        f"{W}, float[4, 4] w4 = {{1,2,3,4,2,3,4,1,3,4,1,2,4,1,2,3}}, float[4] f = {{{factors}}}",
    )


def test_query_heads_of_one_key_value_head_fold_with_equal_factors():
    model = heads("2.0, 0.5, 2.0, 0.5")
    assert [action for _, action, _ in fold(model)] == ["folded"]


def test_query_heads_of_one_key_value_head_stay_with_different_factors():
    model = heads("2.0, 0.5, 2.0, 1.0")
    ((_, action, reason),) = fold(model)
    assert action == "explicit"
    assert "share a factor" in reason


NO_MARKERS = {
    "another reader of the product": """n = RMSNormalization(x, g) m = Mul(n, c)
    a = MatMul(m, w) e = Erf(m) y = Concat<axis = 2>(a, e)""",
    "a constant that is not a vector over the channels": "n = RMSNormalization(x, g) m = Mul(n, s) y = MatMul(m, w)",
    "two computed factors": "n = RMSNormalization(x, g) m = Mul(n, x) y = MatMul(m, w)",
}


@pytest.mark.parametrize("name", NO_MARKERS)
def test_other_products_are_left_alone(name):
    model = parse(NO_MARKERS[name], f"{C}, {W}, {G}, float[1] s = {{2.0}}")
    before = operators(model)
    assert fold(model) == []
    assert operators(model) == before
