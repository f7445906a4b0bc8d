"""SmoothActivations on convolutions: where scales go, that the float model stays, and what is refused."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.backends.onnxruntime import BACKEND
from qcompile.calibration import Calibrator
from qcompile.graph import constant_array
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.smooth_activations import SmoothActivations
from qcompile.scheme import Scheme

OUTLIERS = {2: 40.0, 5: 90.0}
# Weights: w.. 1x1; k.. 3x3; d.. depthwise 3x3; g.. two groups 3x3; t.. transposed in two groups; m.. [8, 5].
SHAPES = {
    "w": (8, 8, 1, 1),
    "k": (8, 8, 3, 3),
    "d": (8, 1, 3, 3),
    "g": (8, 4, 3, 3),
    "t": (8, 3, 2, 2),
    "m": (8, 5),
    "b": (8,),
    "v": (8,),
}


def parse(body, x="float[batch, 8, 12, 12] x", y="float[?, ?, ?, ?] y", **shapes):
    """Model with random constants; those named ..p make some output channels large."""
    shapes = SHAPES | shapes
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> main ({x}) => ({y}) {{ {body} }}')
    generator = np.random.default_rng(0)
    made = {name for node in proto.graph.node for name in node.output} | {value.name for value in proto.graph.input}
    for name in sorted({name for node in proto.graph.node for name in node.input} - made - {""}):
        array = generator.normal(size=shapes[name[0]])
        array = np.abs(array) + 0.5 if name[0] == "v" else array
        if name.endswith("p"):
            array[list(OUTLIERS)] *= np.reshape(list(OUTLIERS.values()), (-1, *(1,) * (array.ndim - 1)))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ShapeInferencePass()(ir.from_proto(proto)).model


def data():
    generator = np.random.default_rng(1)
    return [{"x": generator.normal(size=(2, 8, 12, 12)).astype(np.float32)} for _ in range(3)]


def run(model):
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return BACKEND.open_session(model).run(data()[0])["y"]


def operators(model):
    return [node.op_type for node in model.graph]


def state(model):
    return [(node.op_type, [value and value.name for value in node.inputs]) for node in model.graph]


def smooth(model, **settings):
    """Both passes, after the checks that hold for every model; findings of each."""
    smoothing = SmoothActivations(calibrator=Calibrator(data(), ObserveChannels, BACKEND.open_session), **settings)
    before, original = run(model), operators(model)
    first = smoothing(model)
    np.testing.assert_allclose(run(model), before, rtol=0, atol=2e-5 * np.abs(before).max())
    written = state(model)
    assert not smoothing(model).modified
    assert state(model) == written
    second = FoldScales()(model)
    assert all(finding.action == "folded" for finding in second.findings)
    assert operators(model) == original
    np.testing.assert_allclose(run(model), before, rtol=0, atol=2e-5 * np.abs(before).max())
    return [(finding.layer, finding.action, finding.reason) for finding in first.findings], second.findings


def spread(model, name):
    """Largest magnitude of the channels of a value, over the median one."""
    calibrator = Calibrator(data(), ObserveChannels, BACKEND.open_session)
    absmax = calibrator.collect(model, {name: 1})[name].absmax
    return absmax.max() / np.median(absmax)


FOLDING = {
    "convolution": "c = Conv(x, kp, bp) y = Conv(c, k1)",
    "Relu": "a = Conv(x, kp, bp) c = Relu(a) y = Conv(c, k1)",
    "BatchNormalization": "a = Conv(x, k0) c = BatchNormalization(a, vp, b1, b2, v1) y = Conv(c, k1)",
    "padding": "c = Conv<pads = [1, 1, 1, 1]>(x, kp, bp) y = Conv<pads = [2, 2, 2, 2]>(c, k1)",
    "pooling": "a = Conv(x, kp) c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a) y = Conv(c, k1)",
    "depthwise behind": "a = Conv(x, wp, bp) c = Relu(a) y = Conv<group = 8>(c, d1)",
    "depthwise in front": "a = Conv<group = 8>(x, dp, bp) c = Relu(a) y = Conv(c, w1)",
    "groups": "a = Conv<group = 2>(x, gp, bp) c = Relu(a) y = Conv<group = 2>(c, g1)",
    "transposed in groups": "a = Conv(x, kp, bp) c = Relu(a) y = ConvTranspose<group = 2, strides = [2, 2]>(c, t1)",
    "two readers": "a = Conv(x, kp, bp) c = Relu(a) p = Conv(c, w1) q = Conv(c, w2) y = Add(p, q)",
}


@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize("body", FOLDING.values(), ids=FOLDING)
def test_outlier_channels_go_into_what_is_in_front(body, alpha):
    model = parse(body)
    before = spread(model, "c")
    assert before > 15
    findings, folded = smooth(model, alpha=alpha)
    assert [action for _, action, _ in findings if action == "converted"] == ["converted"]
    assert len(folded) == 1
    assert spread(model, "c") < before / 3


def test_the_factors_are_those_of_equation_4():
    model = parse("a = Conv(x, kp, bp) c = Relu(a) y = Conv(c, k1)")
    absmax = Calibrator(data(), ObserveChannels, BACKEND.open_session).collect(model, {"c": 1})["c"].absmax
    weights = {name: constant_array(model.graph.initializers[name]).copy() for name in ("kp", "bp", "k1")}
    scale = absmax**0.6 / np.abs(weights["k1"]).max(axis=(0, 2, 3)) ** 0.4
    smooth(model, alpha=0.6)
    after = {name: constant_array(model.graph.initializers[name]) for name in weights}
    np.testing.assert_allclose(after["kp"], weights["kp"] / scale[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(after["bp"], weights["bp"] / scale, rtol=1e-5)
    np.testing.assert_allclose(after["k1"], weights["k1"] * scale[:, None, None], rtol=1e-5)


def test_values_of_a_residual_stream_share_one_scale():
    body = """s = Conv(x, wp, bp) a = Conv<pads = [1, 1, 1, 1]>(s, k1) h = Tanh(a) u = Conv(h, wsp) r = Add(s, u)
    y = Conv(r, k3)"""
    model = parse(body)
    before = {name: spread(model, name) for name in "sr"}
    findings, folded = smooth(model)
    decisions = {layer: (action, reason) for layer, action, reason in findings}
    assert {layer: action for layer, (action, _) in decisions.items()} == {
        "s": "kept",
        "a": "converted",
        "y": "converted",
        "u": "kept",
    }
    assert decisions["a"] == decisions["y"]
    assert len(folded) == 1
    assert all(spread(model, name) < before[name] / 3 for name in "sr")


def test_a_convolution_and_a_linear_behind_the_average_share_one_scale():
    body = """s = Conv(x, wp, bp) z = GlobalAveragePool(s) f = Flatten(z) l = MatMul(f, m1)
    c = Conv(s, k1) h = GlobalMaxPool(c) g = Flatten(h) y = Concat<axis = 1>(l, g)"""
    findings, folded = smooth(parse(body, y="float[?, ?] y"))
    assert {layer: action for layer, action, _ in findings} == {"s": "kept", "c": "converted", "l": "converted"}
    assert len(folded) == 1


def test_a_channel_is_scaled_once_where_values_are_joined():
    body = (
        "a = Conv(x, wp, bp) b = Conv(x, w1) j = Concat<axis = 1>(a, b) p = Conv(a, w2) q = Conv(j, k1) y = Add(p, q)"
    )
    findings, folded = smooth(parse(body, k=(8, 16, 1, 1)))
    decisions = {layer: (action, reason) for layer, action, reason in findings}
    assert decisions["q"][0] == "converted"
    assert decisions["p"] == ("kept", "not smoothed: what it reads is smoothed with another value")
    assert len(folded) == 1


REFUSALS = {
    "Clip": ("a = Conv(x, kp) c = Clip(a, lo, hi) y = Conv(c, k1)", "Clip 'c' does not pass on a scale"),
    "HardSwish": ("a = Conv(x, kp) c = HardSwish(a) y = Conv(c, k1)", "HardSwish 'c' does not pass on a scale"),
    "Sigmoid": ("a = Conv(x, kp) c = Sigmoid(a) y = Conv(c, k1)", "Sigmoid 'c' does not pass on a scale"),
    "input": ("y = Conv(x, k1)", "'x' is an input of the graph"),
}
BOUNDS = "lo = Constant<value = float {0}>() hi = Constant<value = float {6}>()"


@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize(("body", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_where_a_scale_does_not_fold_no_mul_is_written(body, reason, alpha):
    model = parse(f"{BOUNDS} {body}" if "lo" in body else body)
    before = state(model)
    findings, _ = smooth(model, alpha=alpha)
    assert state(model) == before
    assert all(action == "kept" for _, action, _ in findings)
    assert reason in findings[-1][2]


def test_auto_leaves_alone_what_no_scale_improves():
    model = parse("c = Conv(x, w1) y = Conv(c, w2)")
    signs = {"w1": np.eye(8, dtype=np.float32), "w2": np.eye(8, dtype=np.float32)}
    for name, array in signs.items():
        model.graph.initializers[name].const_value = ir.tensor(array[:, :, None, None], name=name)
    levels = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 12)).astype(np.float32)
    levels[0, :, 0, 0], levels[0, :, 0, 1] = 0, 255
    smoothing = SmoothActivations(calibrator=Calibrator([{"x": levels}], ObserveChannels, BACKEND.open_session))
    result = smoothing(model)
    assert not result.modified
    assert [finding.action for finding in result.findings] == ["kept", "kept"]
    assert "0.00e+00 without, 0.00e+00 with a scale" in result.findings[-1].reason


def test_auto_scales_a_sum_only_where_that_removes_half_of_the_error():
    body = "s = Conv(x, w0, b0) a = Conv(s, w1) h = Tanh(a) u = Conv(h, w2) r = Add(s, u) y = Conv(r, w3)"
    for alpha, action in (("auto", "kept"), (0.5, "converted")):
        findings, _ = smooth(parse(body), alpha=alpha)
        assert {layer: action for layer, action, _ in findings}["y"] == action
    alone, _ = smooth(parse("s = Conv(x, w0, b0) y = Conv(s, w3)"))
    assert alone[-1][1] == "converted"


@pytest.mark.parametrize("alpha", ["auto", 0.5])
def test_one_channel_is_not_scaled(alpha):
    model = parse("a = Conv(x, o1) c = Relu(a) y = Conv(c, f1)", o=(1, 8, 1, 1), f=(8, 1, 3, 3))
    before = state(model)
    findings, _ = smooth(model, alpha=alpha)
    assert state(model) == before
    assert [(layer, action) for layer, action, _ in findings] == [("a", "kept")]


def test_convolutions_stay_as_they_are_with_dynamic_activations():
    model = parse("c = Conv(x, kp, bp) y = Conv(c, k1)")
    result = SmoothActivations(
        activations=Scheme("int8", "per_token", dynamic=True),
        calibrator=Calibrator(data(), ObserveChannels, BACKEND.open_session),
    )(model)
    assert not result.modified
    assert not result.findings


def test_ignored_convolutions_are_made_up_for():
    model = parse("a = Conv(x, kp, bp) c = Relu(a) p = Conv(c, w1) q = Conv(c, w2) y = Add(p, q)")
    before = constant_array(model.graph.initializers["w2"]).copy()
    findings, folded = smooth(model, ignore=frozenset({"q"}))
    assert ("p", "converted") in [(layer, action) for layer, action, _ in findings]
    assert len(folded) == 1
    assert not np.allclose(constant_array(model.graph.initializers["w2"]), before)


def test_a_linear_and_a_convolution_may_read_one_value_along_different_axes():
    body = "a = Conv(x, kp) p = Conv(a, k1) q = MatMul(a, m1) y = Concat<axis = -1>(p, q)"
    model = parse(body, x="float[2, 8, 8] x", y="float[?, ?, ?] y", k=(8, 8, 1))
    feed = {"x": np.random.default_rng(2).normal(size=(2, 8, 8)).astype(np.float32)}
    before = BACKEND.open_session(model).run(feed)["y"]
    smoothing = SmoothActivations(alpha=0.5, calibrator=Calibrator([feed], ObserveChannels, BACKEND.open_session))
    assert {finding.layer for finding in smoothing(model).findings} == {"a", "p", "q"}
    FoldScales()(model)
    after = BACKEND.open_session(model).run(feed)["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())
