"""Questions about the portable quantized ONNX graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import graph


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """8-bit weight of a linear: an initializer behind a DequantizeLinear.

    Attributes:
        tensor: integer values, shape [in_features, out_features].
        scale: float32, shape [] or [out_features].
        zero_point: shape of the scale, int64.
    """

    tensor: ir.TensorProtocol
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def in_features(self) -> int:
        """Number of input channels."""
        return int(self.tensor.shape.numpy()[0])

    def column_sums(self) -> np.ndarray:
        """Sum over the input channels of the dequantized weight: float64 [out_features]."""
        sums = np.sum(self.tensor.numpy(), axis=0, dtype=np.int64)
        return (sums - self.in_features * self.zero_point) * self.scale.astype(np.float64)


def quantized_weight(node: ir.Node) -> QuantizedWeight | None:
    """Weight of a linear: a MatMul whose second input is an 8-bit initializer with one scale, or one a column."""
    if not graph.is_standard(node, "MatMul") or node.inputs[1] is None:
        return None
    dequantize = node.inputs[1].producer()
    if dequantize is None or not graph.is_standard(dequantize, "DequantizeLinear"):
        return None
    tensor, scale = graph.constant(dequantize.inputs[0]), graph.constant_array(dequantize.inputs[1])
    if tensor is None or scale is None or len(tensor.shape) != 2 or "block_size" in dequantize.attributes:
        return None
    if tensor.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    axis = dequantize.attributes.get_int("axis", 1)
    if scale.ndim > 1 or (scale.ndim == 1 and axis not in (1, -1)):
        return None
    zero_point = graph.constant_array(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    zeros = np.zeros(scale.shape, np.int64) if zero_point is None else zero_point.astype(np.int64)
    return QuantizedWeight(tensor, scale, zeros)
