"""Weights in the 16 levels of NF4, for which OpenVINO has an element type: compressed in memory, and expanded never."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.runtime import opset
from qcompile.block_functions import CODEBOOK, SCALE
from qcompile.block_weights import Stored
from qcompile.qdq import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    import openvino as ov

LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""What OpenVINO's type nf4 stands for: the levels of QLoRA (Dettmers et al. 2023, appendix E), to the bit."""

_SMALLEST = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """Scales of blocks of a weight, [blocks, outputs]: float32 numbers, or indices of 8 bits.

    Attributes:
        numbers: float32, or indices into `levels`.
        levels: float32 [256]; None where the numbers are the scales themselves.
        scale: float32, of each `together` indices in the order of memory, counted output by output.
        offset: is added to each.
        together: how many indices share a scale.
    """

    numbers: np.ndarray
    levels: np.ndarray | None = None
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    together: int = 0

    def computed(self, shape: list[int]) -> ov.Node:
        """Return them in this shape, output by output, as OpenVINO computes them when it loads the model."""
        factory = opset()
        turned = np.ascontiguousarray(self.numbers.T)
        if self.levels is None or self.scale is None:
            return factory.constant(turned.reshape(shape))
        missing = -turned.size % self.together
        indices = np.pad(turned.reshape(-1), (0, missing)).reshape(-1, self.together)
        places = factory.convert(factory.constant(indices), "i32")
        levels = factory.gather(factory.constant(self.levels), places, factory.constant(np.array(0)))
        scaled = factory.multiply(levels, factory.constant(self.scale.reshape(-1, 1)))
        flat = factory.reshape(factory.add(scaled, factory.constant(self.offset)), factory.constant([-1]), False)
        if missing:
            ends = (factory.constant(np.array([number])) for number in (0, turned.size, 1))
            flat = factory.slice(flat, *ends)
        return factory.reshape(flat, factory.constant(np.array(shape)), False)


@dataclasses.dataclass(frozen=True, eq=False)
class NormalFloats(Stored):
    """LEVELS[indices] * scale.

    Attributes:
        integers: indices, [inputs, outputs].
        scale: [blocks, outputs].
        block_size: inputs that share a scale; divides `inputs`.
    """

    integers: ir.TensorProtocol
    scale: Scales
    block_size: int

    def decompressed(self, constant: Callable[[np.ndarray, str], ov.Node]) -> ov.Output:
        """Return the float weight [outputs, inputs] as OpenVINO computes it; `constant` makes one of a type."""
        factory, groups = opset(), self.inputs // self.block_size
        shape = [self.outputs, groups, self.block_size] if groups > 1 else [self.outputs, self.inputs]
        indices = constant(self.integers.numpy().astype(np.uint8).T.reshape(shape), "nf4")
        indices.set_friendly_name(str(self.integers.name))
        scales = self.scale.computed([*shape[:-1], 1])
        value = factory.multiply(factory.convert(indices, "f32"), scales)
        if groups > 1:
            value = factory.reshape(value, factory.constant(np.array([self.outputs, self.inputs])), False)
        return value.output(0)


def of_node(node: ir.Node) -> NormalFloats | None:
    """Return the weight that a DequantizeCodebook of constants makes of a matrix; None where nf4 is not the same.

    That is for other levels, for scales that are computed, and for groups that OpenVINO would compute wrong or that the
    inputs do not fill: see `decompression.storage`. The body of the function is run then, in float.
    """
    if (node.domain, node.op_type) != (DOMAIN, CODEBOOK) or node.attributes.get_int("axis", 0) != 0:
        return None
    indices, levels, scale = graph.constant(node.inputs[0]), graph.constant_array(node.inputs[1]), _scales(node)
    if indices is None or levels is None or scale is None or not np.array_equal(levels, LEVELS):
        return None
    if len(indices.shape) != 2:
        return None
    inputs, size = int(indices.shape.numpy()[0]), node.attributes.get_int("block_size", 0)
    if size >= inputs:
        return NormalFloats(indices, scale, inputs) if inputs % 2 == 0 else None
    filled = inputs % size == 0 and size & -size == size and size >= _SMALLEST
    return NormalFloats(indices, scale, size) if filled else None


def _scales(node: ir.Node) -> Scales | None:
    """Return the scales of a DequantizeCodebook: constants, or what DequantizeScale makes of constants; else None."""
    value = node.inputs[2]
    numbers = graph.constant_array(value)
    if numbers is not None:
        return Scales(numbers) if numbers.dtype == np.float32 else None
    maker = None if value is None else value.producer()
    if maker is None or (maker.domain, maker.op_type) != (DOMAIN, SCALE):
        return None
    indices, levels, scale, offset = map(graph.constant_array, maker.inputs)
    if indices is None or levels is None or scale is None or offset is None:
        return None
    return Scales(indices, levels, scale, offset, maker.attributes.get_int("block_size", 0))
