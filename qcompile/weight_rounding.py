"""How the weight of a layer is rounded, and what its output then loses: solvers applied to linears and convolutions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from qcompile import layers, qdq
from qcompile.layers import Layer
from qcompile.multiplied import as_matrices, from_matrices, grouped_rows
from qcompile.scheme import Scheme
from qcompile.solvers.affine import dequantize, quantize_weight, weight_scale
from qcompile.solvers.gptq import gptq, grouped_gptq

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Integers, scale and zero point."""

Rounding = Literal["nearest", "gptq"]

MOST_INPUTS = 2**14
"""Inputs beyond which weights are rounded to nearest: their second moments would be larger than 1 GiB, and take minutes
to factor."""


def scale_axis(layer: Layer, scheme: Scheme) -> int | None:
    """Axis of the weight along which scales differ; None: there is one for all."""
    return layers.output_axis(layer) if scheme.granularity == "per_channel" else None


def why_nearest(layer: Layer, how: Rounding) -> str:
    """Why a layer is rounded to nearest where that was not asked for; empty where it is rounded as asked for."""
    wide = how == "gptq" and layers.accumulated(layer) > MOST_INPUTS
    return f"rounded to nearest: gptq is for {MOST_INPUTS:,} inputs at most" if wide else ""


def rounded(
    layer: Layer, weight: np.ndarray, rows: np.ndarray, gram: np.ndarray | None, scheme: Scheme, how: Rounding
) -> Parts:
    """Return integers, scale and zero point of the weight.

    Args:
        layer: the layer.
        weight: its weight, float32.
        rows: of what the layer multiplies, [rows, inputs of all groups]; without any and no gram: to nearest.
        gram: second moments of what the layer multiplies, [inputs, inputs], where it has one group; else from rows.
        scheme: of the weight; an asymmetric one is rounded to nearest.
        how: to nearest, or error-compensated up to MOST_INPUTS; the scales are the same.
    """
    known = gram is not None or len(rows) > 0
    if how == "nearest" or not known or not scheme.sym or why_nearest(layer, how):
        return quantize_weight(weight, scheme, scale_axis(layer, scheme))
    parts = as_matrices(weight, layer)
    if gram is not None:
        integers, scale, zero_point = gptq(parts[0], gram, scheme)
        return from_matrices(integers[None], layer, weight.shape), scale, zero_point
    groups = grouped_rows(rows, layer)
    scale, zero_point = weight_scale(weight, scheme, scale_axis(layer, scheme))
    steps = parts / np.broadcast_to(scale, (layers.outputs(layer),)).reshape(len(parts), 1, -1)
    integers = grouped_gptq(steps, groups.transpose(0, 2, 1) @ groups / groups.shape[1], scheme)
    return from_matrices(integers, layer, weight.shape), scale, zero_point


@dataclasses.dataclass(frozen=True)
class Products:
    """What a layer multiplies on sampled rows, before its bias: float32 [groups, rows, outputs of a group].

    Attributes:
        exact: of the float layer.
        quantized: of quantized rows and the quantized weight.
    """

    exact: np.ndarray
    quantized: np.ndarray


def products(
    layer: Layer, weight: np.ndarray, parts: Parts, rows: np.ndarray, quantized_rows: np.ndarray, scheme: Scheme
) -> Products:
    """Multiply rows [rows, inputs of all groups] by the weight, in float and as they are quantized."""
    after = as_matrices(dequantize(*parts, axis=scale_axis(layer, scheme)), layer)
    exact = grouped_rows(rows, layer) @ as_matrices(weight, layer)
    return Products(exact, grouped_rows(quantized_rows, layer) @ after)


class SharedWeights:
    """Dequantized weights, one for each float weight: layers with tied weights read what the first of them made."""

    def __init__(self) -> None:
        self._made: dict[tuple[ir.Value, int | None], tuple[Parts, ir.Value]] = {}

    def rounded(self, source: ir.Value, axis: int | None) -> Parts | None:
        """Return integers, scale and zero point of a weight that was quantized before, else None."""
        known = self._made.get((source, axis))
        return None if known is None else known[0]

    def dequantized(self, source: ir.Value, parts: Parts, axis: int | None, node: ir.Node) -> ir.Value:
        """Return the value to read in place of `source` in `node`; layers come in graph order."""
        known = self._made.get((source, axis))
        if known is None:
            known = self._made[source, axis] = parts, qdq.dequantized_constant(source, *parts, axis, node)
        return known[1]
