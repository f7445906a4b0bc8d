"""Weights of linears in blocks as data: integers, and a scale for each block of inputs of each output."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import lazy_tensor

_SIGNED = {ir.DataType.INT4: 4, ir.DataType.INT8: 8}
_UNSIGNED = {ir.DataType.UINT4: 4, ir.DataType.UINT8: 8}


class Stored:
    """A weight of a linear that is stored as integers [inputs, outputs]."""

    integers: ir.TensorProtocol

    @property
    def inputs(self) -> int:
        """Number of rows."""
        return int(self.integers.shape.numpy()[0])

    @property
    def outputs(self) -> int:
        """Number of columns."""
        return int(self.integers.shape.numpy()[1])


@dataclasses.dataclass(frozen=True, eq=False)
class BlockWeight(Stored):
    """(integers - zero_point) * scale.

    Attributes:
        node: the DequantizeLinear.
        integers: [inputs, outputs], of 4 or 8 bits.
        scale: float32 [blocks, outputs].
        zero_point: [blocks, outputs]; None for 0.
        block_size: inputs that share a scale, of each output: all of them where it has one. The last block may be
            smaller.
    """

    node: ir.Node
    integers: ir.TensorProtocol
    scale: ir.TensorProtocol
    zero_point: ir.TensorProtocol | None
    block_size: int

    @property
    def bits(self) -> int:
        """Bits of the type of the integers."""
        return (_SIGNED | _UNSIGNED)[self.integers.dtype]

    @property
    def signed(self) -> bool:
        """Whether the integers have a sign."""
        return self.integers.dtype in _SIGNED

    def scales(self, block_size: int) -> np.ndarray:
        """Return the scales for smaller blocks, float32 [blocks, outputs]: those of a larger one are repeated.

        `block_size` divides that of the weight, or there is one block.
        """
        return self._repeated(self.scale.numpy().reshape(-1, self.outputs), block_size)

    def zero_points(self, block_size: int) -> np.ndarray:
        """Return the zero points for smaller blocks, int16 [blocks, outputs]."""
        if self.zero_point is None:
            return np.zeros((-(-self.inputs // block_size), self.outputs), np.int16)
        return self._repeated(self.zero_point.numpy().astype(np.int16).reshape(-1, self.outputs), block_size)

    def divides_into(self, block_size: int) -> bool:
        """True where blocks of this size, from the first input on, lie within those of the weight."""
        return self.block_size % block_size == 0 or self.block_size >= self.inputs

    def narrowest(self) -> int:
        """Return in how many bits all integers and zero points are: 2, 4, or those of their type."""
        arrays = [tensor.numpy() for tensor in (self.integers, self.zero_point) if tensor is not None]
        least = min(int(array.min()) for array in arrays if array.size)
        most = max(int(array.max()) for array in arrays if array.size)
        for bits in (2, 4):
            low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)
            if low <= least and most <= high:
                return bits
        return self.bits

    def _repeated(self, array: np.ndarray, block_size: int) -> np.ndarray:
        blocks = -(-self.inputs // block_size)
        if len(array) == 1:
            return np.broadcast_to(array, (blocks, self.outputs))
        return np.repeat(array, self.block_size // block_size, axis=0)[:blocks]


def of_node(node: ir.Node | None) -> BlockWeight | None:
    """Return the weight that a DequantizeLinear of constants makes of a matrix; None for other nodes.

    Also for scales that are not float32, or are neither in blocks along the inputs nor one for each output.
    """
    if node is None or not graph.is_standard(node, "DequantizeLinear"):
        return None
    integers, scale, zero_point = (*map(constant, node.inputs), None)[:3]
    if (
        integers is None
        or scale is None
        or (zero_point is None and any(value is not None for value in node.inputs[2:]))
    ):
        return None
    known = integers.dtype in _SIGNED | _UNSIGNED and scale.dtype == ir.DataType.FLOAT
    if len(integers.shape) != 2 or not known or 0 in integers.shape.numpy():
        return None
    inputs, outputs = integers.shape.numpy()
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if size and axis in (0, -2) and scale.shape.numpy() == (-(-inputs // size), outputs):
        return BlockWeight(node, integers, scale, zero_point, min(size, inputs))
    if not size and axis in (1, -1) and scale.shape.numpy() == (outputs,):
        return BlockWeight(node, integers, scale, zero_point, inputs)
    return None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the data of a constant matrix or vector, also of one that a Transpose turns; None for other values."""
    turned = transposed(value)
    tensor = graph.constant(turned)
    if turned is None or tensor is None:
        return graph.constant(value)
    assert value is not None
    return lazy_tensor(tensor, str(value.name), tuple(reversed(tensor.shape.numpy())), np.transpose)


def transposed(value: ir.Value | None) -> ir.Value | None:
    """Return what a Transpose makes the value of, its axes in reverse order; None where none does."""
    node = None if value is None else value.producer()
    if node is None or not graph.is_standard(node, "Transpose"):
        return None
    perm = tuple(node.attributes.get_ints("perm", ()))
    return node.inputs[0] if perm == tuple(reversed(range(len(perm)))) else None


def of_value(value: ir.Value | None) -> BlockWeight | None:
    """Return the weight whose value this is; None where no DequantizeLinear of constants makes it."""
    return None if value is None else of_node(value.producer())
