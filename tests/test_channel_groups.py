"""Which values share one scale, and what a layer's weight holds for each channel."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from qcompile import channel_groups, channel_scales, layers
from qcompile.graph import constant_array

CASES = {
    "linear": ("y = MatMul(x, w)", "float[2, 8]", (8, 6)),
    "convolution": ("y = Conv(x, w)", "float[2, 8, 6, 6]", (6, 8, 3, 3)),
    "groups": ("y = Conv<group = 4>(x, w)", "float[2, 8, 6, 6]", (12, 2, 3, 3)),
    "depthwise": ("y = Conv<group = 8>(x, w)", "float[2, 8, 6]", (8, 1, 3)),
    "transposed": ("y = ConvTranspose(x, w)", "float[2, 8, 6, 6]", (8, 5, 2, 2)),
    "transposed in groups": ("y = ConvTranspose<group = 2>(x, w)", "float[2, 8, 6, 6]", (8, 5, 2, 2)),
}


def parse(body, inputs, outputs="y", **shapes):
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 23]> main ({inputs}) => (float {outputs}) {{ {body} }}'
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        )
    return ShapeInferencePass()(ir.from_proto(proto)).model


def run(model, x):
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("case", CASES)
def test_multiplied_rows_make_up_for_divided_channels(case):
    body, kind, shape = CASES[case]
    model = parse(body, f"{kind} x", w=shape)
    (layer,) = layers.float_layers(model)
    x = np.random.default_rng(1).normal(size=layer.x.shape.numpy()).astype(np.float32)
    factors = np.random.default_rng(2).uniform(0.5, 4, 8).astype(np.float32)
    before = run(model, x)
    channel_groups.multiply_rows(layer, factors)
    divided = x / factors.reshape(1, 8, *(1,) * (x.ndim - 2))
    np.testing.assert_allclose(run(model, divided), before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_holds_what_each_channel_contributes(case):
    """One position with one channel set, computed by the runtime: its outputs are that row of the kernel."""
    body, kind, shape = CASES[case]
    model = parse(body, f"{kind} x", w=shape)
    (layer,) = layers.float_layers(model)
    kernel = channel_groups.kernel(layer, constant_array(layer.weight))
    groups, inputs = kernel.shape[:2]
    assert groups * inputs == 8
    assert kernel.size == np.prod(shape)
    for channel in range(8):
        x = np.zeros(layer.x.shape.numpy(), np.float32)
        x[(0, channel, *(3,) * (x.ndim - 2))] = 1
        found = kernel[channel // inputs, channel % inputs]
        outputs = run(model, x)[0]
        np.testing.assert_allclose(np.sort(outputs[outputs != 0]), np.sort(found.ravel()), rtol=1e-6)


def names(model):
    return [[str(x.name) for x, _ in group.readings] for group in channel_groups.find(layers.float_layers(model))]


def test_values_that_fold_into_the_same_constants_are_one_group():
    shapes = {f"w{index}": (8, 8, 1, 1) for index in range(4)}
    residual = "s = Conv(x, w0) a = Conv(s, w1) h = Tanh(a) u = Conv(h, w2) r = Add(s, u) y = Conv(r, w3)"
    assert names(parse(residual, "float[2, 8, 6, 6] x", **shapes)) == [["x"], ["s", "r"], ["h"]]


def test_a_value_that_refuses_is_a_group_of_its_own():
    model = parse("a = Tanh(x) y = Conv(a, w)", "float[2, 8, 6, 6] x", w=(8, 8, 1, 1))
    (group,) = channel_groups.find(layers.float_layers(model))
    assert not group.folds
    assert not group.linears
    assert "Tanh" in group.answer.reason


def test_claims_overlap_by_element():
    body = (
        "a = MatMul(x, w0) p, q = Split<axis = 1, num_outputs = 2>(a) c = MatMul(p, w1) d = MatMul(q, w2) y = Add(c, d)"
    )
    model = parse(body, "float[2, 8] x", w0=(8, 8), w1=(4, 3), w2=(4, 3))
    answers = [channel_scales.solve(layer.x, -1) for layer in layers.float_layers(model)[1:]]
    claims = channel_groups.Claims()
    claims.take(answers[0], np.full(4, 0.5))
    assert claims.overlap(answers[0])
    assert not claims.overlap(answers[1])
    first = layers.float_layers(model)[0]
    np.testing.assert_allclose(claims.weight(first)[:, :4], constant_array(first.weight)[:, :4] / 2)
    np.testing.assert_array_equal(claims.weight(first)[:, 4:], constant_array(first.weight)[:, 4:])
