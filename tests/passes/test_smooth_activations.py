import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.backends.onnxruntime import BACKEND
from qcompile.calibration import Calibrator
from qcompile.errors import CalibrationError, RecipeError
from qcompile.graph import constant_array, linears
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.passes.smooth_activations import SmoothActivations
from qcompile.scheme import Scheme

CHANNELS = 16
OUTLIERS = {3: 50.0, 11: 80.0}
PER_TENSOR = Scheme("int8", "per_tensor")


def parse(body, *, outputs="float[?, ?, ?] y", inputs="float[batch, sequence, 16] x"):
    """Model with random constants, named by the first letter of their shape, and a norm gain g with outliers."""
    text = f'<ir_version: 10, opset_import: ["": 23]> main ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    gain = generator.uniform(0.5, 1.5, CHANNELS)
    gain[list(OUTLIERS)] *= list(OUTLIERS.values())
    shapes = {"w": (CHANNELS, 8), "s": (CHANNELS, CHANNELS), "b": (CHANNELS,), "e": (CHANNELS, 0), "k": (4, 20, 1)}
    made = {name for node in proto.graph.node for name in node.output} | {"x", ""}
    for name in sorted({name for node in proto.graph.node for name in node.input} - made):
        array = gain if name == "g" else generator.normal(size=shapes[name[0]])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ShapeInferencePass()(ir.from_proto(proto)).model


def data():
    generator = np.random.default_rng(1)
    return [{"x": generator.normal(size=(2, 20, CHANNELS)).astype(np.float32)} for _ in range(3)]


def smooth(model, **settings):
    """The pass with statistics of the data, and its result, after the checks that hold for every model."""
    smoothing = SmoothActivations(calibrator=Calibrator(data(), ObserveChannels, BACKEND.open_session), **settings)
    before = run(model)
    result = smoothing(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    after = run(model)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    state = [(node.op_type, [value.name for value in node.inputs]) for node in model.graph]
    assert not smoothing(model).modified
    assert state == [(node.op_type, [value.name for value in node.inputs]) for node in model.graph]
    return result


def run(model):
    return BACKEND.open_session(model).run(data()[0])


def operators(model):
    return [node.op_type for node in model.graph]


def test_all_linears_of_a_value_read_one_scale_by_equation_4():
    model = parse("n = RMSNormalization(x, g) a = MatMul(n, w1) b = MatMul(n, w2) y = Add(a, b)")
    session = BACKEND.open_session(parse("y = RMSNormalization(x, g)"))
    absmax_x = np.max([np.abs(session.run(feed)["y"]).max(axis=(0, 1)) for feed in data()], axis=0)
    weights = [constant_array(model.graph.initializers[name]).copy() for name in ("w1", "w2")]
    absmax_w = np.abs(np.concatenate(weights, axis=1)).max(axis=1)
    expected = absmax_x**0.6 / absmax_w**0.4
    result = smooth(model, alpha=0.6)
    assert [(finding.layer, finding.action) for finding in result.findings] == [("a", "converted")]
    first, second = linears(model)
    assert first.x is second.x
    assert first.x.producer().op_type == "Mul"
    np.testing.assert_allclose(constant_array(first.x.producer().inputs[1]), 1 / expected, rtol=1e-5)
    np.testing.assert_allclose(constant_array(first.weight), weights[0] * expected[:, None], rtol=1e-5)
    np.testing.assert_allclose(constant_array(second.weight), weights[1] * expected[:, None], rtol=1e-5)


@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize(
    ("activations", "weights"),
    [
        (Scheme("uint8", sym=False), Scheme("int8", "per_channel")),
        (Scheme("int8"), PER_TENSOR),
        (Scheme("uint8", sym=False, dynamic=True), PER_TENSOR),
        (Scheme("int8", "per_token", dynamic=True), PER_TENSOR),
    ],
)
def test_outliers_are_smoothed_away(alpha, activations, weights):
    model = parse("n = RMSNormalization(x, g) y = MatMul(n, w1)")
    smooth(model, alpha=alpha, activations=activations, weights=weights)
    (linear,) = linears(model)
    statistics = Calibrator(data(), ObserveChannels, BACKEND.open_session).collect(model, {linear.x.name: -1})
    spread = statistics[linear.x.name].absmax
    assert spread.max() < 12 * np.median(spread)
    assert FoldScales()(model).modified
    assert operators(model) == ["RMSNormalization", "MatMul"]


def test_where_folding_is_refused_the_mul_stands_alone_on_the_branch_of_the_linears():
    model = parse(
        "n = RMSNormalization(x, g) a = MatMul(n, s1) r = Add(n, a) q = RMSNormalization(r, b1) y = MatMul(q, w1)"
    )
    smooth(model, activations=Scheme("int8"))
    assert [finding.action for finding in FoldScales()(model).findings] == ["explicit", "folded"]
    residual = next(node for node in model.graph if node.op_type == "Add")
    assert [value.name for value in residual.inputs] == ["n", "a"]
    assert operators(model) == ["RMSNormalization", "Mul", "MatMul", "Add", "RMSNormalization", "MatMul"]


@pytest.mark.parametrize("alpha", ["auto", 0.5])
def test_a_mul_that_does_not_pay_is_not_written(alpha):
    model = parse("e = Tanh(x) y = MatMul(e, w1)")
    result = smooth(model, alpha=alpha, min_gain=0.9)
    assert not result.modified
    assert operators(model) == ["Tanh", "MatMul"]
    (finding,) = result.findings
    assert finding.action == "kept"
    assert "not smoothed" in finding.reason


def test_a_scale_that_folds_needs_no_gain_with_a_number_for_alpha():
    model = parse("n = RMSNormalization(x, b1) y = MatMul(n, w1)")
    assert smooth(model, alpha=0.5, min_gain=1.0).modified


def test_channels_that_grouped_heads_tie_get_one_factor():
    body = """q = MatMul(x, s1) k = MatMul(x, w1) v = MatMul(x, w2)
    a = Attention<q_num_heads = 2, kv_num_heads = 1>(q, k, v) y = MatMul(a, w3)"""
    model = parse(body)
    smooth(model, alpha=0.5)
    assert FoldScales()(model).findings[-1].action == "folded"


def test_weights_in_front_are_taken_as_folding_will_leave_them():
    model = parse("n = RMSNormalization(x, g) a = MatMul(n, s1) r = Relu(a) y = MatMul(r, w1)")
    smooth(model, alpha=0.5)
    assert [finding.action for finding in FoldScales()(model).findings] == ["folded", "folded"]
    smooth(model, alpha=0.5)
    markers = [node for node in model.graph if node.op_type == "Mul"]
    assert len(markers) == 2
    for marker in markers:
        np.testing.assert_allclose(constant_array(marker.inputs[1]), 1, rtol=1e-4)


def test_ignored_layers_keep_reading_the_value():
    model = parse("n = RMSNormalization(x, g) a = MatMul(n, w1) b = MatMul(n, w2) y = Add(a, b)")
    smooth(model, ignore=frozenset({"b"}))
    first, second = linears(model)
    assert first.x.producer().op_type == "Mul"
    assert second.x.name == "n"
    FoldScales()(model)
    assert operators(model) == ["RMSNormalization", "MatMul", "MatMul", "Add"]


def test_a_layer_with_an_empty_weight_is_left_out():
    model = parse("n = RMSNormalization(x, g) a = MatMul(n, w1) b = MatMul(n, e1) y = Concat<axis = 2>(a, b)")
    result = smooth(model)
    assert [(finding.layer, finding.action) for finding in result.findings] == [("a", "converted")]
    assert linears(model)[1].x.name == "n"


def test_a_value_that_a_convolution_reads_too_is_smoothed_for_the_linear_alone():
    model = parse(
        "n = RMSNormalization(x, g) a = MatMul(n, s1) c = Conv(n, k1) y = Concat<axis = 1>(a, c)",
        inputs="float[batch, 20, 16] x",
    )
    result = smooth(model)
    assert [(finding.layer, finding.action) for finding in result.findings] == [("a", "converted"), ("c", "kept")]
    assert next(node for node in model.graph if node.op_type == "Conv").inputs[0].name == "n"


def test_a_dead_channel_is_left_as_it_is():
    model = parse("n = RMSNormalization(x, g) y = MatMul(n, w1)")
    gain = constant_array(model.graph.initializers["g"]).copy()
    gain[5] = 0
    model.graph.initializers["g"].const_value = ir.tensor(gain, name="g")
    smooth(model)
    marker = next(node for node in model.graph if node.op_type == "Mul")
    factors = constant_array(marker.inputs[1])
    assert factors[5] == 1
    assert np.isfinite(factors).all()


def test_a_model_without_linears_is_not_modified():
    model = parse("y = RMSNormalization(x, g)")
    result = smooth(model)
    assert not result.modified
    assert not result.findings


def test_without_calibration_data_it_raises():
    with pytest.raises(CalibrationError, match="statistics"):
        SmoothActivations()(parse("y = MatMul(x, w1)"))


@pytest.mark.parametrize("settings", [{"alpha": 1.5}, {"alpha": "best"}, {"min_gain": -0.1}])
def test_settings_out_of_range_raise(settings):
    with pytest.raises(RecipeError):
        SmoothActivations(**settings)
