"""Writes weights in NF4 into a graph: indices, the codebook, and scales that may be in 8 bits themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import block_functions
from qcompile.graph import Names
from qcompile.initializers import new_initializer, shared_initializer
from qcompile.solvers.nf4 import NF4, SCALES_IN_BLOCK, Codebook, DoubleQuantized, dynamic_levels


def write_codebook(
    model: ir.Model, source: ir.Value, found: Codebook, group_size: int, before: ir.Node, scales: DoubleQuantized | None
) -> ir.Value:
    """Write DequantizeCodebook(indices, NF4, scale) in front of a node, and return the weight that it makes.

    Args:
        model: the model.
        source: the float weight [inputs, outputs], which gives names and shape.
        found: the weight.
        group_size: inputs that share a scale.
        before: the node.
        scales: those of the weight, counted output by output, where they are in 8 bits: DequantizeScale makes them.

    Raises:
        UnsupportedError: the model is below opset 21.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    indices = new_initializer(graph, f"{source.name}.indices", found.indices.astype(ir.DataType.UINT4.numpy()))
    scale = (
        new_initializer(graph, f"{source.name}.scale", found.scale)
        if scales is None
        else _write_scales(model, source, scales, found.scale.shape, before)
    )
    levels = shared_initializer(graph, "qcompile.nf4", NF4)
    given = [indices, levels, scale]
    value = block_functions.call(model, block_functions.CODEBOOK, given, before, axis=0, block_size=group_size)
    value.name = Names(graph).new(f"{source.name}.dequantized")
    value.shape, value.type = source.shape, ir.TensorType(ir.DataType.FLOAT)
    return value


def _write_scales(
    model: ir.Model, source: ir.Value, found: DoubleQuantized, shape: tuple[int, ...], before: ir.Node
) -> ir.Value:
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    groups, outputs = shape
    given = [
        new_initializer(graph, f"{source.name}.scale_indices", found.indices.reshape(outputs, groups).T),
        shared_initializer(graph, "qcompile.dynamic_levels", dynamic_levels()),
        new_initializer(graph, f"{source.name}.scale_scale", found.scale),
        new_initializer(graph, f"{source.name}.scale_offset", np.asarray(found.offset)),
    ]
    value = block_functions.call(model, block_functions.SCALE, given, before, block_size=SCALES_IN_BLOCK)
    value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return value
