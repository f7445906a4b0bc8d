"""Linears whose weights are indices into a codebook, as products with indices in words."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.kernels.group_weight import SCALES_IN_BLOCK
from qcompile.backends.triton.kernels.packing import pack
from qcompile.block_functions import CODEBOOK, SCALE
from qcompile.qdq import DOMAIN

CODEBOOK_LINEAR = "CodebookLinear"
LEVELS = 16


def fuse_codebook_linears(model: ir.Model) -> None:
    """MatMul(x, DequantizeCodebook(indices, codebook, scale)) + b  ->  CodebookLinear(x, words, codebook, scale, ..).

    Behind the scale are the indices, levels and offset of a DequantizeScale that makes the scales in blocks of 256,
    where one does, and b. Does not apply to codebooks of other than 16 levels, to groups along another axis than that
    of the inputs, and to what is no constant.
    """
    names = graph.Names(model.graph)
    products.fuse(model, CODEBOOK_LINEAR, lambda weight: _packed(model, names, weight))


def _packed(model: ir.Model, names: graph.Names, weight: ir.Value) -> products.Stored | None:
    node = weight.producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, CODEBOOK) or node.attributes.get_int("axis", -1) != 0:
        return None
    indices, codebook, scale = node.inputs
    constant, levels = graph.constant(indices), graph.constant(codebook)
    scales = _scales(scale)
    if constant is None or len(constant.shape) != 2 or levels is None or levels.shape.numpy() != (LEVELS,):
        return None
    if scales is None:
        return None
    found = pack(torch.from_numpy(constant.numpy().astype(np.uint8)), 4)
    words = products.new_constant(model, names, f"{weight.name}.words", found.words.numpy())
    attributes: dict[str, ir.Attr | int] = {
        "group_size": min(node.attributes.get_int("block_size", 0), int(constant.shape.numpy()[0])),
        "plane": found.plane,
    }
    return [words, codebook, *scales], attributes


def _scales(scale: ir.Value | None) -> list[ir.Value | None] | None:
    """The scales, and what a DequantizeScale makes them of, or None thrice; None where they are no constants."""
    if graph.constant(scale) is not None:
        return [scale, None, None, None]
    node = None if scale is None else scale.producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, SCALE):
        return None
    fixed = all(graph.constant(value) is not None for value in node.inputs)
    if not fixed or node.attributes.get_int("block_size", 0) != SCALES_IN_BLOCK:
        return None
    indices, levels, of_blocks, offset = node.inputs
    return [of_blocks, indices, levels, offset]
