"""Models with random constants, and the check that scaling a value by its constants changes no output."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from qcompile import channel_scales
from qcompile.channel_scales import Placement

X = "float[batch, sequence, 8] x"
NORM = f"{X}, float[8] wg, float[8, 8] w0, float[8, 4] w1"


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
