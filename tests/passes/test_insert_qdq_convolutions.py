"""InsertQdq on convolutions: exact operators, numerics within what the scales allow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.scheme import Scheme
from tests.passes.quantizable import KERNEL, calibrator, convolution, operators, parse, relative_error, run


def test_convolution_has_an_int32_bias_and_a_quantized_output():
    text = "c = Conv(x, k, b) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)"
    model, before = convolution(text), convolution(text)
    InsertQdq(calibrator=calibrator(model))(model)
    assert operators(model) == [
        *["DequantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "Conv", "Relu"],
        *["QuantizeLinear", "DequantizeLinear", "GlobalAveragePool", "Flatten"],
    ]
    bias = next(node for node in model.graph if node.op_type == "Conv").inputs[2].producer()
    x_scale, w_scale = (model.graph.initializers[name].const_value.numpy() for name in ("x.scale", "k.scale"))
    np.testing.assert_allclose(bias.inputs[1].const_value.numpy(), x_scale * w_scale, rtol=1e-6)
    assert bias.inputs[0].dtype == ir.DataType.INT32
    assert relative_error(before, model) < 0.05


def test_a_bias_that_would_clip_stays_float():
    kernel = KERNEL * 1e-9
    model = convolution("c = Conv(x, k, b) y = Relu(c)", kernel)
    InsertQdq(calibrator=calibrator(model))(model)
    assert next(node for node in model.graph if node.op_type == "Conv").inputs[2].name == "b"


def test_transposed_convolution():
    kernel = np.random.default_rng(2).normal(size=(4, 6, 3, 3)).astype(np.float32)
    text = "c = ConvTranspose(x, k, b) y = Relu(c)"
    model, before = convolution(text, kernel), convolution(text, kernel)
    InsertQdq(calibrator=calibrator(model))(model)
    assert operators(model).count("DequantizeLinear") == 2
    assert relative_error(before, model) < 0.02


def depthwise() -> tuple[ir.Model, Calibrator]:
    """Edge filters over a smooth, bright picture: a rounding error of their sum is an error of the whole output."""
    generator = np.random.default_rng(3)
    kernel = generator.normal(size=(4, 1, 3, 3)).astype(np.float32)
    kernel -= kernel.mean(axis=(2, 3), keepdims=True)
    text = "y = Conv <group = 4, pads = [1, 1, 1, 1]> (x, k)"
    model = parse(f"g (float[n, 4, 16, 16] x) => (float[n, 4, 16, 16] y) {{ {text} }}", k=kernel)
    smooth = [generator.normal(5, 1, (1, 4, 1, 1)) + generator.normal(0, 0.01, (1, 4, 16, 16)) for _ in range(8)]
    data = [{"x": picture.astype(np.float32)} for picture in smooth]
    return model, Calibrator(data, ObserveChannels, get("onnxruntime").open_session)


def test_depthwise_kernels_are_rounded_so_that_their_sums_stay():
    ratios = {}
    for rounding in ("nearest", "gptq"):
        model, data = depthwise()
        (finding,) = InsertQdq(rounding=rounding, calibrator=data)(model).findings
        ratios[rounding] = finding.sqnr_db
    assert ratios["gptq"] > ratios["nearest"] + 3


def test_a_convolution_below_the_floor_stays_float():
    model, data = depthwise()
    result = InsertQdq(calibrator=data, min_convolution_sqnr_db=200.0)(model)
    assert not result.modified
    assert [finding.action for finding in result.findings] == ["kept"]
    assert "below 200 dB" in result.findings[0].reason


def test_a_convolution_that_is_called_twice_has_two_biases_and_one_weight():
    kernel = np.random.default_rng(3).normal(size=(4, 4, 3, 3)).astype(np.float32)
    text = "a = Conv<pads = [1, 1, 1, 1]>(x, k, b) r = Relu(a) c = Conv<pads = [1, 1, 1, 1]>(r, k, b) y = Relu(c)"
    graph = f"g (float[n, 4, 8, 8] x) => (float y) {{ {text} }}"
    model, before = (parse(graph, k=kernel, b=np.arange(4, dtype=np.float32) / 10) for _ in range(2))
    InsertQdq(rounding="gptq", calibrator=calibrator(model))(model)
    integers = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape) == 4]
    assert len(integers) == 1
    assert relative_error(before, model) < 0.05


def test_a_bias_that_the_user_can_override_is_not_baked_in():
    model = convolution("c = Conv(x, k, b) y = Relu(c)")
    model.graph.inputs.append(model.graph.initializers["b"])
    data = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    InsertQdq(calibrator=Calibrator(data, ObserveChannels, get("onnxruntime").open_session))(model)
    assert next(node for node in model.graph if node.op_type == "Conv").inputs[2].name == "b"


def bright() -> tuple[ir.Model, ir.Model, Calibrator]:
    """A convolution to four-bit weights of inputs far from zero, twice, with data: rounding shifts its outputs."""
    text = "c = Conv <pads = [1, 1, 1, 1]> (x, k) y = Sigmoid(c)"
    model, before = convolution(text, KERNEL / 50), convolution(text, KERNEL / 50)
    generator = np.random.default_rng(5)
    data = [{"x": generator.normal(3, 1, (1, 4, 8, 8)).astype(np.float32)} for _ in range(16)]
    return model, before, Calibrator(data, ObserveChannels, get("onnxruntime").open_session)


def outputs_of_convolution(model: ir.Model) -> np.ndarray:
    """Mean of what Sigmoid reads, per channel, on pictures like those of `bright`."""
    x = np.random.default_rng(6).normal(3, 1, (16, 4, 8, 8)).astype(np.float32)
    y = run(model, x).astype(np.float64)
    return np.log(y / (1 - y)).mean(axis=(0, 2, 3))


def test_bias_correction_halves_the_mean_error_and_gives_a_bias_where_there_is_none():
    errors, weights = {}, Scheme("int8", "per_channel", bits=4)
    for correction in ("none", "convolutions"):
        model, before, data = bright()
        result = InsertQdq(weights=weights, bias_correction=correction, calibrator=data)(model)
        assert result.modified
        errors[correction] = np.abs(outputs_of_convolution(model) - outputs_of_convolution(before)).mean()
        node = next(node for node in model.graph if node.op_type == "Conv")
        assert len([value for value in node.inputs if value is not None]) == (2 if correction == "none" else 3)
    assert errors["convolutions"] < errors["none"] / 2


def test_corrected_bias_that_would_clip_stays_float_and_is_corrected():
    _, _, data = bright()
    model = convolution("c = Conv <pads = [1, 1, 1, 1]> (x, k, b) y = Relu(c)", KERNEL * 1e-9)
    InsertQdq(weights=Scheme("int8", "per_channel", bits=4), calibrator=data, bias_correction="convolutions")(model)
    bias = next(node for node in model.graph if node.op_type == "Conv").inputs[2]
    difference = bias.const_value.numpy() - np.arange(6, dtype=np.float32) / 10
    assert 0 < np.abs(difference).max() < 1e-6


def test_noise_where_the_reader_tells_no_numbers_apart_does_not_count():
    kernel = np.concatenate([KERNEL[:3], KERNEL[3:] * 0.1])
    ratios = []
    for reader in ("HardSwish(c)", "Sigmoid(c)"):
        text = f"s = Sub(x, t) c = Conv(s, k) y = {reader}"
        model = parse(
            f"g (float[n, 4, 8, 8] x) => (float y) {{ {text} }}", k=-np.abs(kernel), t=np.full((1,), -6, np.float32)
        )
        (finding,) = InsertQdq(calibrator=calibrator(model))(model).findings
        ratios.append(finding.sqnr_db)
    assert ratios[0] > ratios[1] + 10


@pytest.mark.parametrize(
    ("reader", "low", "high"),
    [("HardSwish(c)", -3.0, None), ("HardSigmoid <alpha = 0.5> (c)", -1.0, 1.0), ("Sigmoid(c)", None, None)],
)
def test_range_ends_where_the_reader_tells_no_numbers_apart(reader: str, low: float | None, high: float | None):
    model, before = (convolution(f"c = Conv(x, k, b) y = {reader}") for _ in range(2))
    InsertQdq(calibrator=calibrator(model))(model)
    written = next(node for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "c")
    scale, zero_point = (value.const_value.numpy().astype(np.float64) for value in written.inputs[1:])
    ends = (0 - zero_point) * scale, (255 - zero_point) * scale
    assert (ends[0] > -3.1) == (low is not None)
    assert (ends[1] < 1.1) == (high is not None)
    assert relative_error(before, model) < 0.02
