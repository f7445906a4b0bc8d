import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from qcompile.calibration_masks import PaddingMask
from qcompile.calibration_observation import SAMPLING_INPUT, output_name
from qcompile.calibration_rows import stratified
from qcompile.errors import CalibrationError
from qcompile.passes.observe_channels import ObserveChannels

LINEAR = """
    <ir_version: 10, opset_import: ["" : 23]>
    main (float[batch, sequence, 4] x, int64[batch, sequence] mask) => (float[batch, sequence, 3] y)
    <float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul(x, w) }
"""
ALL_ROWS = np.array([[1.0, 0.0, 0.25]], np.float32)


def parse(text):
    return ir.from_proto(onnx.parser.parse_model(text))


def run(model, feed):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))


def observed(text, axes, feed, sampling=ALL_ROWS, **options):
    model = parse(text)
    result = ObserveChannels(axes, **options)(model)
    assert result.modified
    sampling = np.resize(sampling, (len(result.groups), 3)).astype(np.float32)
    return result, run(model, {**feed, SAMPLING_INPUT: sampling})


def assert_statistics(outputs, name, expected):
    """`expected`: the valid rows of the value, in order, float32 [count, channels]."""
    np.testing.assert_array_equal(outputs[output_name(name, "minimum")], expected.min(axis=0))
    np.testing.assert_array_equal(outputs[output_name(name, "maximum")], expected.max(axis=0))
    np.testing.assert_allclose(outputs[output_name(name, "sum")], expected.sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)


@pytest.fixture
def mask():
    return np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int64)


def test_original_outputs_stay_and_small_results_are_added(x, mask):
    before = run(parse(LINEAR), {"x": x, "mask": mask})
    result, outputs = observed(LINEAR, {"x": -1, "y": -1}, {"x": x, "mask": mask}, gram=["x"])
    np.testing.assert_array_equal(outputs["y"], before["y"])
    assert_statistics(outputs, "x", x.reshape(10, 4))
    assert_statistics(outputs, "y", before["y"].reshape(10, 3))
    np.testing.assert_allclose(outputs[output_name("x", "gram")], x.reshape(10, 4).T @ x.reshape(10, 4), rtol=1e-5)
    assert output_name("y", "gram") not in outputs
    assert [group.values for group in result.groups] == [("x", "y")]
    assert outputs[result.groups[0].count] == 10


def test_second_run_changes_nothing():
    model = parse(LINEAR)
    first = ObserveChannels({"x": -1})(model)
    text = ir.to_proto(model).SerializeToString()
    second = ObserveChannels({"x": -1})(model)
    assert not second.modified
    assert second.groups == first.groups
    assert ir.to_proto(model).SerializeToString() == text


@pytest.mark.parametrize(("valid", "dtype"), [(1, "int64"), (0, "int64"), (1, "bool"), (1, "float")])
def test_padding_takes_no_part(x, mask, valid, dtype):
    numpy_dtype = {"float": "float32"}.get(dtype, dtype)
    text = LINEAR.replace("int64[batch", f"{dtype}[batch")
    feed = {"x": x, "mask": (mask if valid else 1 - mask).astype(numpy_dtype)}
    result, outputs = observed(text, {"x": -1}, feed, masks=(PaddingMask("mask", valid),), gram=["x"])
    rows = x[mask == 1]
    assert_statistics(outputs, "x", rows)
    np.testing.assert_array_equal(outputs[output_name("x", "rows")], rows)
    np.testing.assert_allclose(outputs[output_name("x", "gram")], rows.T @ rows, rtol=1e-5, atol=1e-6)
    assert outputs[result.groups[0].count] == 7


def test_a_mask_reaches_through_dims_between_and_behind_its_own(x, mask):
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float[batch, heads, sequence, 4] x, int64[batch, sequence] mask) => (float[batch, heads, sequence, 4] y)
        { y = Relu(x) }
    """
    heads = np.stack([x, 2 * x, 3 * x], axis=1)
    _, outputs = observed(text, {"x": -1}, {"x": heads, "mask": mask}, masks=(PaddingMask("mask"),))
    assert_statistics(outputs, "x", heads.transpose(0, 2, 1, 3)[mask == 1].reshape(-1, 4))


def test_a_mask_of_equal_sizes_is_transposed_where_the_value_is(x):
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float[sequence, batch, 4] x, float[sequence, heads, batch, 4] z, int64[batch, sequence] mask)
            => (float[sequence, batch, 4] y) { y = Relu(x) }
    """
    square = x[:, :2]
    heads = np.stack([square, 2 * square, 3 * square], axis=1)
    mask = np.array([[1, 1], [0, 1]], np.int64)
    feed = {"x": square, "z": heads, "mask": mask}
    _, outputs = observed(text, {"x": -1, "z": -1}, feed, masks=(PaddingMask("mask"),))
    assert_statistics(outputs, "x", square[mask.T == 1])
    assert_statistics(outputs, "z", heads.transpose(0, 2, 1, 3)[mask.T == 1].reshape(-1, 4))


def test_channels_in_front_of_the_sequence(x, mask):
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float[batch, 4, sequence] x, int64[batch, sequence] mask) => (float[batch, 4, sequence] y) { y = Relu(x) }
    """
    _, outputs = observed(text, {"x": 1}, {"x": x.transpose(0, 2, 1), "mask": mask}, masks=(PaddingMask("mask"),))
    assert_statistics(outputs, "x", x[mask == 1])


FLATTENED = """
    <ir_version: 10, opset_import: ["" : 23]>
    main (float[batch, sequence, 4] x, int64[batch, sequence] mask, int64[batch, other] second) => (float[n, 4] y)
    <int64[2] shape = {-1, 4}, int64[1] first = {0}> {
        flat = Reshape(x, shape)
        firsts = Gather<axis=1>(x, first)
        doubled = Mul(x, x)
        yy = Relu(flat)
        y = Identity(yy)
    }
"""


def test_values_of_unknown_dims_are_compared_with_the_masks_when_the_model_runs(x, mask):
    masks = (PaddingMask("second"), PaddingMask("mask"))
    second = np.array([[1, 1, 0], [1, 0, 0]], np.int64)
    model = parse(FLATTENED)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values["flat"].shape = ir.Shape([None, 4])
    values["firsts"].shape = ir.Shape([None, None, 4])
    values["doubled"].shape = ir.Shape([None, None, 4])
    result = ObserveChannels({"flat": -1, "firsts": -1, "doubled": -1}, masks=masks)(model)
    sampling = np.resize(ALL_ROWS, (len(result.groups), 3))
    outputs = run(model, {"x": x, "mask": mask, "second": second, SAMPLING_INPUT: sampling})
    assert_statistics(outputs, "flat", x[mask == 1])
    assert_statistics(outputs, "doubled", np.square(x[mask == 1]))
    assert_statistics(outputs, "firsts", x[:, 0])  # no mask has these dims: nothing is left out


def test_the_first_of_two_masks_of_the_same_dims_counts(x, mask):
    text = FLATTENED.replace("int64[batch, other]", "int64[batch, sequence]")
    model = parse(text)
    next(value for node in model.graph for value in node.outputs if value.name == "flat").shape = ir.Shape([None, 4])
    ObserveChannels({"flat": -1}, masks=(PaddingMask("mask"), PaddingMask("second")))(model)
    outputs = run(model, {"x": x, "mask": mask, "second": np.ones_like(mask), SAMPLING_INPUT: ALL_ROWS})
    assert_statistics(outputs, "flat", x[mask == 1])


def test_equal_fixed_dims_are_those_of_the_mask_only_in_front(mask):
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float[2, 5, 4] x, float[7, 2, 5, 4] z, float[2, 6, 4] u, int64[2, 5] mask) => (float[2, 5, 4] y)
        { y = Relu(x) }
    """
    rng = np.random.default_rng(1)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in
            {"x": (2, 5, 4), "z": (7, 2, 5, 4), "u": (2, 6, 4)}.items()}  # fmt: skip
    _, outputs = observed(text, {"x": -1, "z": -1, "u": -1}, {**feed, "mask": mask}, masks=(PaddingMask("mask"),))
    assert_statistics(outputs, "x", feed["x"][mask == 1])
    assert_statistics(outputs, "z", feed["z"].reshape(-1, 4))
    assert_statistics(outputs, "u", feed["u"].reshape(-1, 4))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 23])
def test_convolution_inputs_have_their_channels_on_axis_one(opset):
    text = f"""
        <ir_version: 10, opset_import: ["" : {opset}]>
        main (float[batch, 3, height, width] x) => (float[batch, 3, height, width] y) {{ y = Relu(x) }}
    """
    image = np.random.default_rng(2).normal(size=(2, 3, 6, 5)).astype(np.float32)
    _, outputs = observed(text, {"x": 1}, {"x": image})
    rows = image.transpose(0, 2, 3, 1).reshape(-1, 3)
    assert_statistics(outputs, "x", rows)
    np.testing.assert_array_equal(outputs[output_name("x", "rows")], rows)


@pytest.mark.parametrize(
    "sampling", [(0.25, 0.0, 0.0), (0.3, 0.9, 0.7), (1.0, 0.0, 0.5), (0.01, 0.5, 0.1), (0.001, 0.0, 0.0)]
)
def test_rows_are_the_stratified_ones(sampling):
    x = np.arange(400, dtype=np.float32).reshape(1, 100, 4)
    feed = {"x": x, "mask": np.ones((1, 100), np.int64)}
    _, outputs = observed(LINEAR, {"x": -1}, feed, np.array([sampling]), rows=60)
    density, carry, phase = sampling
    chosen = stratified(100, min(int(100 * density + carry), 60), phase)
    np.testing.assert_array_equal(outputs[output_name("x", "rows")], x[0, chosen])


def test_a_value_without_shape_or_in_half_precision():
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float16[batch, 4] x) => (float16[batch, 4] y) { z = Relu(x) y = Relu(z) }
    """
    x = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float16)
    _, outputs = observed(text, {"z": -1, "x": -1}, {"x": x}, masks=())
    assert_statistics(outputs, "z", np.maximum(x, 0).astype(np.float32))
    assert_statistics(outputs, "x", x.astype(np.float32))


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"nowhere": -1}, "no such value"),
        ({"z": 1}, "rank is unknown"),
        ({"x": 2}, "no axis 2"),
        ({"w": -1}, "no such value"),
    ],
)
def test_refusals(axes, reason):
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        main (float[batch, 4] x) => (float[batch, 4] y) <float[4] w = {1, 2, 3, 4}> { z = Mul(x, w) y = Relu(z) }
    """
    model = parse(text)
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(CalibrationError, match=reason) as caught:
        ObserveChannels(axes)(model)
    assert caught.value.subject == next(iter(axes))
    assert ir.to_proto(model).SerializeToString() == before
