"""What products of integers read: activations of 8 bits with one scale, and constant weights of symmetric int8."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import graph

EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclasses.dataclass(frozen=True)
class Activation:
    """(q - zero_point) * scale.

    Attributes:
        q: integers of 8 bits that are computed, or given to the model.
        scale: float32, of all of them, or of each token.
        zero_point: of the type of q; None for 0.
    """

    q: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """integers * scale.

    Attributes:
        integers: int8.
        scale: float32, one for each output.
    """

    integers: np.ndarray
    scale: np.ndarray


def activation(x: ir.Value) -> Activation | None:
    """The integers that a DequantizeLinear with one scale makes x of; None where there are none."""
    node = x.producer()
    if node is None or not graph.is_standard(node, "DequantizeLinear") or node.graph is not x.graph:
        return None
    q, scale, zero_point = (*node.inputs, None)[:3]
    if q is None or scale is None or graph.constant(q) is not None or q.dtype not in EIGHT_BITS:
        return None
    single = scale.shape is not None and len(scale.shape) == 0
    return Activation(q, scale, zero_point) if single else None


def weight(value: ir.Value, axis: int) -> Weight | None:
    """What a DequantizeLinear makes a weight of, whose outputs are along an axis.

    None for what is no constant of int8, for scales along another axis or in blocks, and for zero points other than 0:
    the product would need the sums of the activations.
    """
    node = value.producer()
    if node is None or not graph.is_standard(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
        return None
    integers, scale = map(graph.constant_array, node.inputs[:2])
    if integers is None or scale is None or integers.dtype != np.int8 or scale.dtype != np.float32:
        return None
    zero_point = graph.constant_array(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    if zero_point is None or zero_point.any() or integers.ndim < 2:
        return None
    dimension = node.attributes.get_int("axis", 1) % integers.ndim
    if scale.shape != () and (dimension, scale.shape) != (axis, (integers.shape[axis],)):
        return None
    return Weight(integers, np.ascontiguousarray(np.broadcast_to(scale, integers.shape[axis])))
