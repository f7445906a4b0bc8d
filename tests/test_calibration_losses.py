"""What outputs lose to quantization, measured on the rows of the statistics."""

from __future__ import annotations

import numpy as np

from qcompile.calibration_layers import LayerStatistics
from qcompile.calibration_losses import output_loss
from qcompile.calibration_ranges import StaticRanges
from qcompile.calibration_statistics import ChannelStatistics
from qcompile.layers import Layer, every_layer
from qcompile.scheme import ASYMMETRIC_UINT8, Scheme
from qcompile.weight_rounding import rounded
from tests.passes.quantizable import WEIGHTS, parse

POINTWISE = np.ascontiguousarray(WEIGHTS.T).reshape(6, 4, 1, 1)
ROWS = np.random.default_rng(1).normal(2, 1, size=(400, 4)).astype(np.float32)
NO_ROWS = np.zeros((0, 0), np.float32)


def seen(rows: np.ndarray) -> ChannelStatistics:
    return ChannelStatistics(rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), rows, len(rows))


def layer_of(text: str) -> Layer:
    model = parse(
        f"g (float[n, 4{', 8, 8' if 'Conv' in text else ''}] x) => (float y) {{ {text} }}", w=WEIGHTS, k=POINTWISE
    )
    return every_layer(model)[0]


def loss(layer: Layer, *, bits: int = 8, corrected: bool = False, **statistics: ChannelStatistics):
    scheme = Scheme("int8", "per_channel", bits=bits)
    weight = layer.weight.const_value.numpy()
    parts = rounded(layer, weight, NO_ROWS, None, scheme, "nearest")
    known = LayerStatistics((layer,), statistics)
    return output_loss(
        layer, weight, parts, known, StaticRanges(ASYMMETRIC_UINT8, "minmax"), scheme, corrected=corrected
    )


def test_a_layer_without_rows_is_not_measured() -> None:
    assert loss(layer_of("y = MatMul(x, w)")) is None


def test_fewer_bits_lose_more() -> None:
    layer = layer_of("y = MatMul(x, w)")
    fine, coarse = (loss(layer, bits=bits, x=seen(ROWS)) for bits in (8, 4))
    assert fine.sqnr_db > 35
    assert coarse.sqnr_db < fine.sqnr_db - 10


def test_the_shift_of_a_convolution_is_what_its_bias_takes_off() -> None:
    layer = layer_of("y = Conv(x, k)")
    plain, corrected = (loss(layer, bits=4, corrected=each, x=seen(ROWS)) for each in (False, True))
    assert not plain.shift.any()
    assert corrected.shift.size == 6
    assert corrected.sqnr_db > plain.sqnr_db + 3
    linear = layer_of("y = MatMul(x, w)")
    assert not loss(linear, bits=4, corrected=True, x=seen(ROWS)).shift.any()


def test_an_output_that_flows_on_in_integers_loses_more() -> None:
    layer = layer_of("c = Conv(x, k) y = Sigmoid(c)")
    outputs = ROWS @ WEIGHTS
    float_output = loss(layer, x=seen(ROWS))
    integers = loss(layer, x=seen(ROWS), c=seen(outputs))
    wide = loss(layer, x=seen(ROWS), c=seen(10 * outputs))
    assert float_output.sqnr_db > integers.sqnr_db > wide.sqnr_db + 6
