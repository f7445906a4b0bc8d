"""Weights that came quantized: float tensors that know how their file has them, to keep them bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile.solvers.grouped import Grouped


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix whose element is integers * scale + minimum in float32, rounded after each of the two operations.

    Attributes:
        integers: int8 or uint8 [rows, columns].
        scale: float32 [rows, columns / group_size].
        minimum: float32, as the scale; None: nothing is added. It is seldom a multiple of the scale, so that an
            integer zero point cannot stand for it.
    """

    integers: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None

    def dequantize(self) -> np.ndarray:
        """Return the matrix, float32 [rows, columns]."""
        group = self.integers.shape[1] // self.scale.shape[1]
        weight: np.ndarray = self.integers.astype(np.float32) * np.repeat(self.scale, group, axis=1)
        return weight if self.minimum is None else weight + np.repeat(self.minimum, group, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """How a file has a matrix.

    Attributes:
        kind: as the format calls it, such as "Q4_1".
        bits: that the integers need, 2 to 8.
        group_size: columns that share a scale.
        read: returns the blocks; nothing is held.
    """

    kind: str
    bits: int
    group_size: int
    read: Callable[[], Blocks]


class StoredTensor(ir.LazyTensor):
    """A float weight, computed each time it is read, that knows how its file has it.

    What is computed from it is another tensor, which knows nothing of the file; its transpose alone does.

    Args:
        read: returns the weight as an array.
        shape: of it.
        name: of the tensor.
        stored: how the file has the matrix, or why it has no blocks that can be kept.
        transposed: whether the rows of the file are the columns of this.
    """

    def __init__(
        self,
        read: Callable[[], np.ndarray],
        shape: tuple[int, ...],
        name: str,
        stored: Stored | str,
        transposed: bool = False,
    ) -> None:
        super().__init__(lambda: ir.tensor(read()), ir.DataType.FLOAT, ir.Shape(shape), name=name)
        self.stored, self.transposed, self._read = stored, transposed, read

    def turned(self, name: str) -> StoredTensor:
        """Return the transpose of this matrix."""
        read, shape = self._read, tuple(int(size) for size in self.shape.numpy())
        turned = shape[::-1]
        return StoredTensor(
            lambda: np.ascontiguousarray(read().T), turned, name, self.stored, transposed=not self.transposed
        )


def stored_as(tensor: ir.TensorProtocol | None, *, transposed: bool) -> Stored | str:
    """Return how the file of a weight has it, or why its integers cannot be kept.

    Args:
        tensor: the weight.
        transposed: a linear reads it [inputs, outputs] where the file has [outputs, inputs]; a table is as in the file.
    """
    if not isinstance(tensor, StoredTensor):
        return "it did not come quantized"
    if isinstance(tensor.stored, str) or tensor.transposed == transposed:
        return tensor.stored
    return "its blocks run the other way"


def around_zero(blocks: Blocks, bits: int) -> tuple[Grouped, np.ndarray | None]:
    """Return the same matrix with signed integers, [columns, rows] as a linear reads it, and what is added to it.

    q * d + m = (q - c) * d + (m + c * d), c in the middle of the integers: what activations lose when they are rounded
    is multiplied by smaller integers. Where m + c * d would have to be rounded, the zero point is -c, and m stays. All
    bits of the elements are the same, but for the sign of a zero.

    Args:
        blocks: of a file; the integers are unsigned where there is a minimum.
        bits: that the integers need.

    Returns:
        The integers in groups, with a zero point int8 where any is not 0; the minimum, float32 [groups, rows].
    """
    scale = np.ascontiguousarray(blocks.scale.T)
    if blocks.minimum is None:
        return Grouped(np.ascontiguousarray(blocks.integers.T), scale), None
    middle = 1 << (bits - 1)
    integers = (blocks.integers.T.astype(np.int16) - middle).astype(np.int8)
    minimum = np.ascontiguousarray(blocks.minimum.T)
    moved = minimum.astype(np.float64) + middle * scale.astype(np.float64)
    exact = moved.astype(np.float32) == moved
    zero_point = None if exact.all() else np.where(exact, 0, -middle).astype(np.int8)
    return Grouped(integers, scale, zero_point), np.where(exact, moved, minimum).astype(np.float32)
