"""The error that comes together along a model, against what numpy computes."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.calibration_masks import PaddingMask
from qcompile.verify_layers import ROWS, accumulated_errors, layer_outputs, output_names
from tests.scaled_models import parse
from tests.sessions import OnnxRuntime

X = "float[batch, sequence, 8] x"
LINEARS = f"{X}, float[8, 4] w0, float[4] w1, float[4, 6] w2"
BODY = "a = MatMul(x, w0) b = Add(a, w1) c = Relu(b) y = MatMul(c, w2)"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_the_outputs_of_linears_are_those_behind_their_bias():
    model, sample = parse(LINEARS, BODY), feed(2, 3, 8)
    names = output_names(model)
    assert list(names.values()) == ["b", "y"]
    first, second = layer_outputs(model, names, sample, (), OnnxRuntime()).values()
    w = weights(model)
    expected = (sample["x"] @ w["w0"] + w["w1"]).reshape(-1)
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, (np.maximum(expected, 0).reshape(-1, 4) @ w["w2"]).reshape(-1), rtol=1e-4)
    assert [value.name for value in model.graph.outputs] == ["y"], "the model itself is as it was"


def test_memory_is_bounded_by_rows():
    model = parse(LINEARS, BODY)
    first, second = layer_outputs(model, output_names(model), feed(3, 50, 8), (), OnnxRuntime()).values()
    assert (first.size, second.size) == (ROWS * 4, ROWS * 6)


def test_nothing_large_is_kept_until_the_end_of_the_run():
    """The runtime frees a value behind its last reader: the model's outputs are none, and each probe comes at once."""
    opened: list[ir.Model] = []

    def opening(model: ir.Model):
        opened.append(model)
        return OnnxRuntime()(model)

    model = parse(LINEARS, BODY)
    layer_outputs(model, output_names(model), feed(2, 3, 8), (), opening)
    (probed,) = opened
    assert [str(value.name).startswith("qcompile.probe/") for value in probed.graph.outputs] == [True, True]
    operators = [node.op_type for node in probed.graph]
    assert operators == ["MatMul", "Add", "Flatten", "Slice", "Relu", "MatMul", "Flatten", "Slice"]


def test_of_a_convolution_the_first_image_is_compared():
    model = parse("float[batch, 2, 5, 5] x, float[3, 2, 3, 3] w0", "y = Conv(x, w0)", "float[?, 3, 3, 3] y")
    (image,) = layer_outputs(model, output_names(model), feed(4, 2, 5, 5), (), OnnxRuntime()).values()
    assert image.size == 3 * 3 * 3


def test_padded_positions_are_left_out():
    model = parse(f"{LINEARS}, int64[batch, sequence] m", f"{BODY} n = Identity(m)")
    sample = feed(2, 3, 8) | {"m": np.array([[0, 1, 1], [1, 0, 0]])}
    names = output_names(model)
    whole, valid = (
        next(iter(layer_outputs(model, names, sample, masks, OnnxRuntime()).values()))
        for masks in ((), (PaddingMask("m"),))
    )
    np.testing.assert_array_equal(valid, whole.reshape(6, 4)[[1, 2, 3]].reshape(-1))


def test_products_of_attention_are_layers_too():
    model = parse(f"{X}, float[8, 8] w0", "k = MatMul(x, w0) y = Attention<q_num_heads=2, kv_num_heads=2>(x, k, k)")
    assert list(output_names(model).values()) == ["k", "y"]


def test_what_the_other_model_lacks_is_left_out():
    model, other = parse(LINEARS, BODY), parse(f"{X}, float[8, 6] w0", "y = MatMul(x, w0)")
    names = output_names(model)
    found = layer_outputs(other, names, feed(1, 2, 8), (), OnnxRuntime())
    assert list(found) == [list(names)[1]]
    assert layer_outputs(other, {"a": "nowhere"}, feed(1, 2, 8), (), OnnxRuntime()) == {}


@pytest.mark.parametrize(
    ("exact", "noisy", "decibels"),
    [
        ([3.0, 4.0], [3.0, 4.5], 20.0),
        ([1.0, 1.0], [1.0, 1.0], math.inf),
        ([1.0, math.nan], [1.0, math.nan], math.nan),
        ([1.0, 1.0], [1.0], math.nan),
    ],
)
def test_the_error_is_a_ratio_in_decibels(exact, noisy, decibels):
    found = accumulated_errors({"fc": np.array(exact), "gone": np.ones(1)}, {"fc": np.array(noisy), "new": np.ones(1)})
    assert found == {"fc": pytest.approx(decibels, nan_ok=True)}
