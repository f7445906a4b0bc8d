"""What the output of a layer loses to quantization, measured on calibration rows that the layer multiplies."""

from __future__ import annotations

import dataclasses

import numpy as np

from qcompile.calibration_layers import LayerStatistics
from qcompile.calibration_ranges import StaticRanges
from qcompile.graph import Convolution, constant_array
from qcompile.layer_bias import has_constant_bias
from qcompile.layers import Layer
from qcompile.saturation import told_apart
from qcompile.scheme import Scheme
from qcompile.solvers.affine import dequantize
from qcompile.solvers.bias_correction import output_shift
from qcompile.solvers.sqnr import as_quantized, decibels, powers, sqnr_db
from qcompile.weight_rounding import Parts, Products, products

_COLUMNS = 4096
"""Outputs of a linear that are computed at a time."""


@dataclasses.dataclass(frozen=True)
class OutputLoss:
    """Loss of one layer.

    Attributes:
        shift: what quantization adds to the outputs on average and the bias is to take off, float32
            [groups, outputs of a group], or [1] where nothing is to be taken off.
        sqnr_db: signal-to-noise ratio of the output in dB, with the shift taken off; itself quantized where it is
            written so.
    """

    shift: np.ndarray
    sqnr_db: float


def output_loss(
    layer: Layer,
    weight: np.ndarray,
    parts: Parts,
    statistics: LayerStatistics,
    ranges: StaticRanges,
    scheme: Scheme,
    *,
    corrected: bool,
) -> OutputLoss | None:
    """Measure a layer; None where there are no rows that it multiplies.

    Args:
        layer: the layer.
        weight: its weight, float32.
        parts: integers, scale and zero point of the weight.
        statistics: of what the layer reads, multiplies and writes.
        ranges: of the activations.
        scheme: of the weight.
        corrected: the bias is going to take the average loss off: of a convolution whose bias is constant.
    """
    seen, multiplied = statistics.of(layer.x), statistics.multiplied(layer)
    if seen is None or multiplied is None or not len(multiplied.rows):
        return None
    noisy = as_quantized(multiplied.rows, ranges.of(layer.x, seen), ranges.scheme)
    if not isinstance(layer, Convolution):
        return OutputLoss(np.zeros(1, np.float32), _linear_sqnr(weight, parts, multiplied.rows, noisy))
    found = products(layer, weight, parts, multiplied.rows, noisy, scheme)
    shift = np.zeros(1, np.float32)
    if corrected and has_constant_bias(layer):
        shift = output_shift(found.exact, found.quantized)
    return OutputLoss(shift, _sqnr(layer, found, shift, statistics, ranges))


def _linear_sqnr(weight: np.ndarray, parts: Parts, rows: np.ndarray, noisy: np.ndarray) -> float:
    """Compare rows @ weight with noisy @ quantized weight, some outputs at a time: a vocabulary has many."""
    power = noise = 0.0
    scale, zero_point = (np.broadcast_to(parameter, weight.shape[1]) for parameter in parts[1:])
    for start in range(0, weight.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        quantized = dequantize(parts[0][:, columns], scale[columns], zero_point[columns], axis=1)
        found = powers(rows @ weight[:, columns], noisy @ quantized)
        power, noise = power + found[0], noise + found[1]
    return decibels(power, noise)


def _sqnr(
    layer: Convolution, found: Products, shift: np.ndarray, statistics: LayerStatistics, ranges: StaticRanges
) -> float:
    result = found.quantized - np.atleast_2d(shift)[:, None, :]
    written = statistics.of(layer.output)
    if written is None or not has_constant_bias(layer):
        return sqnr_db(found.exact, result)
    bias = constant_array(layer.bias)
    offset = np.zeros(1, np.float32) if bias is None else bias.reshape(len(found.exact), 1, -1)
    bounds = told_apart(layer.output)
    exact = np.clip(found.exact + offset, *bounds)
    flowing = as_quantized(result + offset, ranges.of(layer.output, written), ranges.scheme)
    return decibels(powers(found.exact, found.exact)[0], powers(exact, np.clip(flowing, *bounds))[1])
