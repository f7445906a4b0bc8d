"""Weights with a scale for each block, as files hold them that came quantized to 4 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends import Site
from qcompile.backends.onnxruntime.dequantize import register

IN_BLOCKS, FLOAT = "in blocks", "float"
_TYPES = frozenset({ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8})


def block_weights(model: ir.Model) -> list[Site]:
    """Return the sites of DequantizeLinear(constant, block_size=b) -> MatMul or Gemm, in graph order.

    "in blocks" leaves it as it is: ONNX Runtime makes MatMulNBits of a matrix whose blocks are 16, 32, 64, 128 or 256
    inputs of one output, which rounds the activation to 8 bits per block by itself, and dequantizes any other at every
    run. "float" is the same arithmetic in operators that it evaluates once, when it loads the model: the file stays as
    small, the memory is that of float. Measured in us, in blocks and float, one thread, Zen 5 with AVX512-VNNI,
    onnxruntime 1.31, 1024 x 1024: blocks of 32 inputs 15 and 49 (M = 1), 73 and 93 (8), 137 and 148 (16), 1087 and 1185
    (128); 2048 x 512: 5041 and 4750 (512); 384 x 1536: 671 and 628 (128); blocks of 128 inputs 11 and 46 (1), 762 and
    1182 (128); of 512 inputs 1115 and 51 (1), 2449 and 1230 (128); of 32 outputs 1951 and 52 (1), 3351 and 1278 (128).
    Does not apply to weights that are not constant or that the model has as an output, to types of other than 4 and 8
    bits, to scales that are not float32, and where the last block is not filled.
    """
    sites = []
    for node in model.graph:
        if not graph.is_standard(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) == 0:
            continue
        weight = node.outputs[0]
        product = next((reader for reader in graph.readers(weight) if _multiplies_by(reader, weight)), None)
        known = all(graph.constant(value) is not None for value in node.inputs if value is not None)
        if product is None or not known or not _is_supported(node):
            continue
        forms = (IN_BLOCKS, FLOAT) if _is_fused(node) else (FLOAT, IN_BLOCKS)
        sites.append(Site("weight in blocks", (node, product), forms))
    return sites


def dequantize_blocks_when_loaded(model: ir.Model) -> None:
    """DequantizeLinear(q, s, z, block_size=b)  ->  (Cast(q) - Cast(z)) * s over blocks, where a site is written so.

    The axis of the blocks is split in two, [.., n * b, ..] to [.., n, b, ..], and joined again. ONNX Runtime evaluates
    operators of constants when it loads a model; a DequantizeLinear it leaves alone, to fuse it.
    """
    for site in block_weights(model):
        if site.form == FLOAT:
            _write_float(model, site.nodes[0])


def _write_float(model: ir.Model, node: ir.Node) -> None:
    quantized, scale, zero_point = (*node.inputs, None)[:3]
    tensor = graph.constant(quantized)
    assert tensor is not None
    shape, block = tensor.shape.numpy(), node.attributes.get_int("block_size", 0)
    axis = node.attributes.get_int("axis", 1) % len(shape)
    split = [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]]
    nodes: list[ir.Node] = []
    names = graph.Names(model.graph)

    def write(operator: str, inputs: list[ir.Value | None], attributes: dict[str, int] | None = None) -> ir.Value:
        name = names.new(f"{node.outputs[0].name}.{operator.lower()}")
        nodes.append(ir.node(operator, inputs, attributes or {}, name=name))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    def constant(numbers: list[int]) -> ir.Value:
        name = f"qcompile.shape_{'x'.join(map(str, numbers))}"
        return register(model, name, np.array(numbers, np.int64))

    between = constant([axis + 1])
    value = write("Reshape", [write("Cast", [quantized], {"to": ir.DataType.FLOAT}), constant(split)])
    if zero_point is not None:
        zero = write("Cast", [zero_point], {"to": ir.DataType.FLOAT})
        value = write("Sub", [value, write("Unsqueeze", [zero, between])])
    value = write("Mul", [value, write("Unsqueeze", [scale, between])])
    value = write("Reshape", [value, constant(list(shape))])
    old = node.outputs[0]
    value.type, value.shape = old.type, old.shape
    model.graph.insert_before(node, nodes)
    old.replace_all_uses_with(value)
    model.graph.remove(node, safe=True)


def _multiplies_by(node: ir.Node, weight: ir.Value) -> bool:
    return graph.is_standard(node, "MatMul", "Gemm") and node.inputs[1] is weight


def _is_supported(node: ir.Node) -> bool:
    quantized, scale = (graph.constant(value) for value in node.inputs[:2])
    assert quantized is not None
    assert scale is not None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    filled = quantized.shape.numpy()[axis] % block == 0
    known = quantized.dtype in _TYPES and scale.dtype == ir.DataType.FLOAT
    return filled and known and not node.outputs[0].is_graph_output()


def _is_fused(node: ir.Node) -> bool:
    """True for what ONNX Runtime makes MatMulNBits of."""
    tensor, block = graph.constant(node.inputs[0]), node.attributes.get_int("block_size", 0)
    assert tensor is not None
    matrix = len(tensor.shape) == 2 and node.attributes.get_int("axis", 1) in (0, -2)
    return matrix and block in (16, 32, 64, 128, 256) and graph.sole_reader(node.outputs[0]) is not None
