"""Where the readers of a value stop telling numbers apart: quantization need not represent what lies beyond."""

from __future__ import annotations

import math

import onnx_ir as ir

from qcompile.graph import constant_array, is_standard, readers

Bounds = tuple[float, float]

EVERYTHING: Bounds = (-math.inf, math.inf)


def told_apart(value: ir.Value) -> Bounds:
    """Return (low, high): replacing every element by the nearest number in between changes nothing that is computed.

    Relu, Clip, HardSigmoid and HardSwish map all numbers beyond a bound to one; the bounds are those of the reader that
    tells most apart. Every other reader, and the user of a graph output, tells all numbers apart.
    """
    found = [_bounds(node) for node in readers(value)]
    if not found or value.is_graph_output():
        return EVERYTHING
    return min(low for low, _ in found), max(high for _, high in found)


def _bounds(node: ir.Node) -> Bounds:
    if is_standard(node, "Relu"):
        return 0.0, math.inf
    if is_standard(node, "HardSwish"):
        return -3.0, math.inf
    if is_standard(node, "HardSigmoid"):
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        ends = (-beta / alpha, (1 - beta) / alpha) if alpha else EVERYTHING
        return min(ends), max(ends)
    if is_standard(node, "Clip"):
        return _bound(node, 1, -math.inf), _bound(node, 2, math.inf)
    return EVERYTHING


def _bound(node: ir.Node, index: int, default: float) -> float:
    """Constant bound of a Clip; `default` where there is none or it is computed."""
    array = constant_array(node.inputs[index]) if len(node.inputs) > index else None
    return default if array is None else float(array.item())
