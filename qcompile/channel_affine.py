"""Nodes that multiply every channel by a constant and add another."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile.graph import constant_array, is_standard


@dataclasses.dataclass(frozen=True)
class Affine:
    """x * scale + shift, each float64 [channels]."""

    scale: np.ndarray
    shift: np.ndarray


def affine_of(node: ir.Node, x: ir.Value, channels: int, rank: int) -> Affine | None:
    """What the node does to x [batch, channels, ...], by channel; None for anything else, or what is not finite.

    BatchNormalization at inference, and Mul, Div, Add or Sub of a constant that broadcasts along axis 1 only.

    Args:
        node: a reader of x.
        x: the value.
        channels: size of its axis 1.
        rank: number of its axes.
    """
    with np.errstate(all="ignore"):
        if is_standard(node, "BatchNormalization"):
            found = _normalization(node)
        elif is_standard(node, "Mul", "Div", "Add", "Sub"):
            found = _elementwise(node, x, channels, rank)
        else:
            found = None
    return found if found is not None and np.all(np.isfinite([found.scale, found.shift])) else None


def _normalization(node: ir.Node) -> Affine | None:
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1 or any(array is None for array in arrays):
        return None
    scale, shift, mean, variance = (np.asarray(array, dtype=np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(factor, shift - mean * factor)


def _elementwise(node: ir.Node, x: ir.Value, channels: int, rank: int) -> Affine | None:
    others = [value for value in node.inputs if value is not x]
    array = constant_array(others[0]) if len(others) == 1 else None
    vector = None if array is None else _per_channel(array, channels, rank)
    if vector is None:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    is_first = node.inputs[0] is x
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if node.op_type == "Add":
        return Affine(ones, vector)
    if node.op_type == "Sub":
        return Affine(ones, -vector) if is_first else Affine(-ones, vector)
    return Affine(1 / vector, zeros) if is_first else None


def _per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """The constant as float64 [channels], where it broadcasts along axis 1 of `rank` axes only."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in (1, channels) or any(dim != 1 for axis, dim in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))
