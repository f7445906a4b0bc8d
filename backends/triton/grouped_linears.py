"""Linears whose weights are integers in groups, as products with weights in words."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qcompile import block_weights
from qcompile.backends.triton import products
from qcompile.backends.triton.kernels.packing import BITS, pack
from qcompile.graph import Names

GROUPED = "GroupedLinear"


def fuse_grouped_linears(model: ir.Model) -> None:
    """MatMul(x, DequantizeLinear(q, s, z)) + b  ->  GroupedLinear(x, words of q, s, z, b).

    q is a constant matrix of 4 or 8 bits, with a scale for each block of inputs of each output, or one for each output
    (see `block_weights.of_node`); it is packed in as few bits as its integers need. A weight that several products
    read is packed once. Does not apply to zero points that are no number of 8 bits without sign behind that.
    """
    names = Names(model.graph)
    products.fuse(model, GROUPED, lambda weight: _packed(model, names, block_weights.of_value(weight)))


def _packed(model: ir.Model, names: Names, weight: block_weights.BlockWeight | None) -> products.Stored | None:
    """Words, scales and zero points as constants of the graph, and what the kernel is to know of them."""
    if weight is None:
        return None
    integers = weight.integers.numpy().astype(np.int8 if weight.signed else np.uint8)
    bits = _bits(integers, weight.signed)
    zero = weight.zero_points(weight.block_size) + (1 << (bits - 1) if weight.signed else 0)
    if zero.min() < 0 or zero.max() > 255:
        return None
    found = pack(torch.from_numpy(integers), bits)
    name = str(weight.node.outputs[0].name)
    implied = bool((zero == 1 << (bits - 1)).all())
    operands: list[ir.Value | None] = [
        products.new_constant(model, names, f"{name}.words", found.words.numpy()),
        products.new_constant(model, names, f"{name}.scale", weight.scales(weight.block_size)),
        None if implied else products.new_constant(model, names, f"{name}.zero", zero.astype(np.uint8)),
    ]
    return operands, {"bits": bits, "group_size": weight.block_size, "plane": found.plane}


def _bits(integers: np.ndarray, signed: bool) -> int:
    """The fewest bits of BITS that hold the integers."""
    least, most = int(integers.min()), int(integers.max())
    ends = {bits: (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1) for bits in BITS}
    return next(bits for bits, (low, high) in ends.items() if low <= least and most <= high)
