"""The bias of a quantized convolution."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.graph import convolutions
from qcompile.layer_bias import has_constant_bias, write_bias
from tests.passes.quantizable import KERNEL, parse

BIAS = np.array([1.0, -2.0, 3.0, 0.0, 5.0, -6.0], np.float32)
SCALE = np.float32(0.5)
WEIGHT_SCALES = np.array([0.5, 0.25, 0.5, 0.25, 0.5, 0.25], np.float32)
NONE = np.zeros(1, np.float32)


def written(shift: np.ndarray, weight_scale: np.ndarray, operator: str = "Conv", bias: bool = True) -> ir.Value | None:
    """What a convolution with 6 outputs reads as its bias afterwards."""
    kernel = KERNEL if operator == "Conv" else KERNEL.transpose(1, 0, 2, 3)
    text = f"g (float[n, 4, 8, 8] x) => (float y) {{ y = {operator}(x, k{', b' if bias else ''}) }}"
    model = parse(text, k=np.ascontiguousarray(kernel), **({"b": BIAS} if bias else {}))
    write_bias(convolutions(model)[0], SCALE, weight_scale, shift)
    inputs = model.graph[-1].inputs
    return inputs[2] if len(inputs) > 2 else None


def dequantized(value: ir.Value | None) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scale behind the value."""
    assert value is not None
    node = value.producer()
    assert node is not None
    assert node.op_type == "DequantizeLinear"
    integers, scale, _ = (item.const_value.numpy() for item in node.inputs)
    assert integers.dtype == np.int32
    return integers, scale


@pytest.mark.parametrize("shift", [NONE, np.arange(6, dtype=np.float32).reshape(2, 3)], ids=["nothing", "a shift"])
def test_a_bias_less_its_shift_is_an_integer_with_the_scale_of_the_products(shift: np.ndarray) -> None:
    integers, scale = dequantized(written(shift, WEIGHT_SCALES))
    np.testing.assert_array_equal(scale, SCALE * WEIGHT_SCALES)
    np.testing.assert_array_equal(integers * scale, np.round((BIAS - shift.reshape(-1)) / scale) * scale)


def test_without_a_bias_the_shift_makes_one() -> None:
    assert written(NONE, WEIGHT_SCALES, bias=False) is None
    integers, scale = dequantized(written(np.ones(6, np.float32), WEIGHT_SCALES, bias=False))
    np.testing.assert_array_equal(integers * scale, -np.ones(6))


def test_what_would_clip_stays_float_less_its_shift() -> None:
    tiny = np.full(6, 1e-12, np.float32)
    kept, corrected = written(NONE, tiny), written(np.ones(6, np.float32), tiny)
    assert kept is not None
    assert kept.name == "b"
    assert corrected is not None
    np.testing.assert_array_equal(corrected.const_value.numpy(), BIAS - 1)


def test_a_transposed_convolution_takes_integers_with_one_scale_only() -> None:
    kept = written(NONE, WEIGHT_SCALES, "ConvTranspose")
    assert kept is not None
    assert kept.name == "b"
    assert dequantized(written(NONE, np.float32(0.5), "ConvTranspose"))[1] == 0.25


def test_a_bias_that_can_be_overridden_is_not_touched() -> None:
    model = parse("g (float[n, 4, 8, 8] x) => (float y) { y = Conv(x, k, b) }", k=KERNEL, b=BIAS)
    assert has_constant_bias(convolutions(model)[0])
    model.graph.inputs.append(model.graph.initializers["b"])
    (layer,) = convolutions(model)
    assert not has_constant_bias(layer)
    write_bias(layer, SCALE, WEIGHT_SCALES, NONE)
    assert layer.node.inputs[2] is layer.bias
