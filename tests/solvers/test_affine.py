import hypothesis
import numpy as np
import onnx
import onnx.helper
import onnxruntime
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from qcompile.scheme import Scheme
from qcompile.solvers import affine

STATIC_SCHEMES = [
    Scheme(dtype, granularity, sym)
    for dtype in ("int8", "uint8")
    for granularity in ("per_tensor", "per_channel", "per_token")
    for sym in (True, False)
]
any_float = strategies.floats(width=32)
any_scheme = strategies.sampled_from(STATIC_SCHEMES)
matrices = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=any_float)
finite_matrices = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=strategies.floats(-(2.0**100), 2.0**100, width=32),
)


def quantized_by_onnxruntime(x, scale, zero_point):
    dtype = onnx.helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])],
        "quantize",
        [
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape),
            onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, []),
            onnx.helper.make_tensor_value_info("zero_point", dtype, []),
        ],
        [onnx.helper.make_tensor_value_info("y", dtype, x.shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x, "scale": scale, "zero_point": zero_point})[0]


@hypothesis.given(any_float, any_float, any_scheme)
@hypothesis.example(0.0, 0.0, Scheme())
@hypothesis.example(np.nan, np.inf, Scheme())
@hypothesis.example(-np.inf, np.inf, Scheme("uint8", sym=False))
@hypothesis.example(0.0, 1e-45, Scheme())
@hypothesis.example(-1e-45, 1e-45, Scheme("uint8", sym=False))
def test_the_scale_of_any_range_is_a_positive_normal_number(low, high, scheme):
    scale, zero_point = affine.scale_and_zero_point(low, high, scheme)
    assert scale.dtype == np.float32
    assert np.finfo(np.float32).tiny <= scale <= np.finfo(np.float32).max
    assert zero_point.dtype == scheme.dtype


@pytest.mark.parametrize("scheme", STATIC_SCHEMES)
def test_the_scale_of_nothing_but_zeros_is_one(scheme):
    assert affine.scale_and_zero_point(0.0, 0.0, scheme)[0] == 1.0


def test_scale_and_zero_point_by_hand():
    def pair(low, high, scheme):
        return tuple(number.item() for number in affine.scale_and_zero_point(low, high, scheme))

    assert pair(-254.0, 100.0, Scheme("int8")) == (2.0, 0)
    assert pair(-254.0, 100.0, Scheme("uint8")) == (2.0, 128)
    assert pair(-100.0, 155.0, Scheme("uint8", sym=False)) == (1.0, 100)
    assert pair(-100.0, 155.0, Scheme("int8", sym=False)) == (1.0, -28)
    assert pair(3.0, 510.0, Scheme("uint8", sym=False)) == (2.0, 0)  # widened to contain zero
    assert pair(-510.0, -3.0, Scheme("uint8", sym=False)) == (2.0, 255)


@hypothesis.given(finite_matrices, any_scheme)
def test_an_element_within_the_range_moves_by_half_a_step_at_most(x, scheme):
    low, high = affine.value_range(x, scheme, axis=-1)
    scale, zero_point = affine.scale_and_zero_point(low, high, scheme)
    restored = affine.quantize_dequantize(x, scale, zero_point, scheme)
    # Rounding the zero point may cost an end of an asymmetric range another half step.
    bound = scale.astype(np.float64) * (0.5 if scheme.sym else 1.0)
    assert np.all(np.abs(restored.astype(np.float64) - x) <= bound * (1 + 1e-4))


@hypothesis.given(matrices, any_scheme)
def test_zero_is_exact_and_everything_is_defined(x, scheme):
    low, high = affine.value_range(x, scheme, axis=-1)
    scale, zero_point = affine.scale_and_zero_point(low, high, scheme)
    restored = affine.quantize_dequantize(x, scale, zero_point, scheme)
    assert np.all(np.isfinite(restored))
    assert np.all(restored[(x == 0) | np.isnan(x)] == 0)


@hypothesis.given(finite_matrices)
def test_quantizing_again_changes_nothing(x):
    for scheme in (Scheme(), Scheme("uint8", sym=False)):
        scale, zero_point = affine.scale_and_zero_point(*affine.value_range(x, scheme), scheme)
        once = affine.quantize_dequantize(x, scale, zero_point, scheme)
        np.testing.assert_array_equal(affine.quantize_dequantize(once, scale, zero_point, scheme), once)


@pytest.mark.parametrize("scheme", [Scheme("uint8", sym=False), Scheme("uint8"), Scheme("int8", sym=False)])
def test_rounding_and_saturation_are_those_of_onnxruntime(scheme):
    halves = np.arange(-600, 600, dtype=np.float32) / 2
    x = np.concatenate([halves, np.array([1e30, -1e30, np.inf, -np.inf], np.float32)])
    for low, high in [(-100.0, 155.0), (0.0, 255.0), (-1.7, 0.3)]:
        scale, zero_point = affine.scale_and_zero_point(low, high, scheme)
        expected = quantized_by_onnxruntime(x, scale, zero_point)
        np.testing.assert_array_equal(affine.quantize(x, scale, zero_point, scheme), expected)


def test_halves_round_to_even_and_symmetric_int8_leaves_out_its_lowest_number():
    one, zero = np.float32(1), np.int8(0)
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -128.0, 300.0, np.nan], np.float32)
    expected = np.array([0, 2, 2, 0, -2, -127, 127, 0], np.int8)
    np.testing.assert_array_equal(affine.quantize(x, one, zero, Scheme()), expected)


def test_each_granularity_has_the_shape_of_its_groups():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 5
    assert affine.value_range(x, Scheme())[0].shape == ()
    assert affine.value_range(x, Scheme(granularity="per_channel"), axis=1)[1].tolist() == [10.0, 14.0, 18.0]
    assert affine.value_range(x, Scheme(granularity="per_token"))[1].shape == (2, 3, 1)


def test_per_channel_without_an_axis_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="channel axis"):
        affine.value_range(np.ones((2, 2)), Scheme(granularity="per_channel"))


@hypothesis.given(finite_matrices, strategies.integers(-2, 1))
def test_a_weight_is_quantized_channel_by_channel(weight, axis):
    scheme = Scheme(granularity="per_channel")
    quantized, scale, zero_point = affine.quantize_weight(weight, scheme, axis)
    assert scale.shape == zero_point.shape == (weight.shape[axis],)
    for channel in range(weight.shape[axis]):
        alone = affine.quantize_weight(weight.take(channel, axis), Scheme())
        np.testing.assert_array_equal(quantized.take(channel, axis), alone[0])
        assert scale[channel] == alone[1]


def test_channels_of_their_own_scale_lose_less_than_one_scale_for_all():
    weight = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32) * np.geomspace(
        0.01, 1, 16, dtype=np.float32
    )

    def error(scheme):
        restored = affine.dequantize(*affine.quantize_weight(weight, scheme, 1), axis=1)
        return np.linalg.norm((restored - weight) / weight.std(axis=0))

    assert error(Scheme(granularity="per_channel")) < error(Scheme()) / 5


def test_a_weight_with_infinite_elements_keeps_the_scale_of_the_finite_ones():
    weight = np.array([[1.0, np.inf], [-2.0, -np.inf], [np.nan, 0.5]], np.float32)
    quantized, scale, _ = affine.quantize_weight(weight, Scheme())
    assert scale == np.float32(2 / 127)
    assert quantized.tolist() == [[64, 127], [-127, -127], [0, 32]]
