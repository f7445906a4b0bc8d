"""Products with weights in blocks by one kernel of ONNX Runtime, MatMulNBits, which reads them as they are stored."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.onnxruntime.linears import CONTRIB
from qcompile.block_functions import rounded_in_blocks
from qcompile.block_weights import BlockWeight
from qcompile.initializers import register_initializer

BLOCKS = (16, 32, 64, 128, 256)
"""Inputs that may share a scale in MatMulNBits; it refuses others."""

_BLOCKS_OF_TWO_BITS = (32, 64, 128)
"""Those for which it multiplies weights of 2 bits by activations of 8; for others it dequantizes them in every run."""

_FAST = 128
"""Block that one scale for many inputs is repeated for: 38 us where blocks of 32 take 45 (1024 x 1024, M = 1)."""

_FLOAT_ACTIVATIONS, _INTEGER_ACTIVATIONS = 1, 4
"""Values of accuracy_level."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How MatMulNBits is to read a weight.

    Attributes:
        bits: of each integer: 2, 4 or 8.
        block_size: inputs that share a scale, one of BLOCKS; the last block may be smaller.
        level: accuracy_level: 4 rounds the activations to 8 bits, one scale max|x| / 127 for each block of a row.
    """

    bits: int
    block_size: int
    level: int


def storage(weight: BlockWeight, activation_block: int | None) -> Storage | None:
    """Return how a weight is stored for a product; None where no kernel computes just that, or it is too slow.

    With float activations there is a kernel for 4 bits only, in which narrower integers are stored too: weights of 2
    and 8 bits would be dequantized in every run, 481 and 285 us where 4 bits take 17 (576 x 576, M = 1).

    Args:
        weight: the weight.
        activation_block: channels of the activation that share a scale of 8 bits; None: it stays float.
    """
    if activation_block is None:
        sizes = [size for size in BLOCKS if weight.divides_into(size)]
        if not sizes or weight.narrowest() > 4:
            return None
        whole = [size for size in sizes if size >= weight.inputs]
        few = weight.block_size >= weight.inputs
        best = min(whole, default=_FAST) if few else max(sizes)
        return Storage(4, best, _FLOAT_ACTIVATIONS)
    if activation_block not in BLOCKS or not weight.divides_into(activation_block):
        return None
    bits = weight.narrowest()
    bits = 4 if bits == 2 and activation_block not in _BLOCKS_OF_TWO_BITS else bits
    return Storage(bits, activation_block, _INTEGER_ACTIVATIONS)


def activation(product: ir.Node) -> tuple[ir.Value | None, int | None]:
    """Return what a product reads, and in which blocks it is rounded to 8 bits before; None: it is not."""
    found = rounded_in_blocks(product.inputs[0])
    return (product.inputs[0], None) if found is None else found


def write_operands(model: ir.Model, weight: BlockWeight, stored: Storage, names: graph.Names) -> list[ir.Value | None]:
    """Register the weight as MatMulNBits reads it: integers without a sign, transposed, then scales and zero points."""
    name = weight.node.outputs[0].name
    blocks = -(-weight.inputs // stored.block_size)
    shape = (weight.outputs, blocks, stored.block_size * stored.bits // 8)
    packed = ir.LazyTensor(
        lambda: ir.tensor(_packed(weight, stored).reshape(shape)),
        dtype=ir.DataType.UINT8,
        shape=ir.Shape(shape),
        name=names.new(f"{name}.packed"),
    )
    scales = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(weight.scales(stored.block_size).T).reshape(-1)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape((weight.outputs * blocks,)),
        name=names.new(f"{name}.scales"),
    )
    values: list[ir.Value | None] = [register_initializer(model.graph, each) for each in (packed, scales)]
    middle = 2 ** (stored.bits - 1)
    zeros = weight.zero_points(stored.block_size) + (middle if weight.signed else 0)
    if (zeros != middle).any():
        points = pack(zeros.astype(np.uint8).T, stored.bits).reshape(-1)
        tensor = ir.tensor(points, name=names.new(f"{name}.zero_points"))
        values.append(register_initializer(model.graph, tensor))
    return values


def write_product(
    model: ir.Model, weight: BlockWeight, stored: Storage, operands: list[ir.Value | None], product: ir.Node
) -> None:
    """Put a MatMulNBits in the place of a MatMul, whose name and output it gets."""
    x, block = activation(product)
    attributes = {
        "K": weight.inputs,
        "N": weight.outputs,
        "bits": stored.bits,
        "block_size": stored.block_size,
        "accuracy_level": stored.level,
    }
    read = product.inputs[0] if stored.level == _FLOAT_ACTIVATIONS else x
    assert block is not None or stored.level == _FLOAT_ACTIVATIONS
    new = ir.node("MatMulNBits", [read, *operands], attributes, domain=CONTRIB, name=product.name)
    new.metadata_props.update(product.metadata_props)
    ir.convenience.replace_nodes_and_values(model.graph, product, [product], [new], product.outputs, new.outputs)


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 [m, n] of so many bits as bytes [m, ceil(n * bits / 8)], the first number in the lowest bits."""
    each = 8 // bits
    filled = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % each)))
    packed = np.zeros((len(numbers), filled.shape[1] // each), np.uint8)
    for place in range(each):
        packed |= filled[:, place::each] << np.uint8(bits * place)
    return packed


def _packed(weight: BlockWeight, stored: Storage) -> np.ndarray:
    """Return the bytes of the integers, those of a sign with the middle added; the last block is filled with zeros."""
    numbers = weight.integers.numpy().astype(np.int16)
    unsigned = (numbers + (2 ** (stored.bits - 1) if weight.signed else 0)).astype(np.uint8).T
    return pack(np.pad(unsigned, ((0, 0), (0, -weight.inputs % stored.block_size))), stored.bits)
