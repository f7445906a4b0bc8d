"""Weights with a scale for each block, as files hold them that came quantized to 4 bits, and as recipes make them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile import block_weights as weights
from qcompile import graph
from qcompile.backends import Site
from qcompile.backends.onnxruntime import dequantize
from qcompile.backends.onnxruntime.block_products import Storage, activation, storage, write_operands, write_product
from qcompile.backends.onnxruntime.tied_tables import share_with_embedding
from qcompile.block_functions import CODEBOOK
from qcompile.contract import Finding
from qcompile.initializers import shared_initializer
from qcompile.qdq import DOMAIN

IN_BLOCKS, FLOAT = "in blocks", "float"
_FLOAT_IN_MEMORY = "its weight is float in memory: ONNX Runtime has no kernel for it, or a slower one"
_FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_TYPES = _FOUR_BITS | {ir.DataType.INT8, ir.DataType.UINT8}


def block_weights(model: ir.Model) -> list[Site]:
    """Return the sites of DequantizeLinear(constant of 4 bits, block_size=b) -> MatMul, in graph order.

    "in blocks" is MatMulNBits, told not to round the activation; "float" is a float weight, computed when the model is
    loaded: the file stays as small, the memory is that of float. Measured in us, in blocks and float, one thread, Zen 5
    with AVX512-VNNI, onnxruntime 1.31: 1024 x 1024 in blocks of 32: 51 and 52 (M = 1), 166 and 57 (4), 209 and 97 (8),
    263 and 145 (16), 1354 and 1195 (128); 2048 x 8192 in blocks of 128: 626 and 1899 (1), 2874 and 2745 (2), 4710 and
    5317 (16). Not a site: what reads an activation that is rounded to 8 bits in blocks, for which the kernel is three
    times as fast as either at M = 1, and as fast as float at 128 (13 and 948 where float takes 49 and 1073: 1024 x
    1024, blocks of 64); and a weight that several products read.
    """
    sites = []
    for weight, products in _multiplied(model):
        product = graph.sole_reader(weight.node.outputs[0])
        if product is None or product not in products:
            continue
        _, block = activation(product)
        if block is None and storage(weight, None) is not None:
            sites.append(Site("weight in blocks", (weight.node, product), (IN_BLOCKS, FLOAT)))
    return sites


def multiply_in_blocks(model: ir.Model) -> None:
    """MatMul(x, DequantizeLinear(q, s, z, block_size=b))  ->  MatMulNBits(x, q, s, z), where a site is written so.

    Where x comes from QuantizeDequantizePerBlock, MatMulNBits rounds it itself, in blocks of that size, to which those
    of the weight are cut. Otherwise it is told not to: ONNX Runtime would fuse the same by itself, and round the
    activation to 8 bits for each block, which nobody asked for: 12 such linears in a row are 4.6 quantization steps
    off. Does not apply to what `storage` has no kernel for.
    """
    names = graph.Names(model.graph)
    floats = {site.nodes[0] for site in block_weights(model) if site.form == FLOAT}
    for weight, products in list(_multiplied(model)):
        operands: dict[Storage, list[ir.Value | None]] = {}
        for product in products:
            _, block = activation(product)
            stored = storage(weight, block) or storage(weight, None)
            if stored is None or weight.node in floats:
                continue
            if stored not in operands:
                operands[stored] = write_operands(model, weight, stored, names)
                share_with_embedding(model, weight, stored, operands[stored], names)
            write_product(model, weight, stored, operands[stored], product)
        if not weight.node.outputs[0].uses() and not weight.node.outputs[0].is_graph_output():
            model.graph.remove(weight.node, safe=True)


def dequantize_blocks_when_loaded(model: ir.Model) -> tuple[Finding, ...]:
    """DequantizeLinear(q, s, z, block_size=b)  ->  (Cast(q) - Cast(z)) * s over blocks, where a linear reads it.

    The axis of the blocks is split in two, [.., n * b, ..] to [.., n, b, ..], and joined again; where the last block is
    not filled, the scales are gathered for each input. ONNX Runtime evaluates operators of constants when it loads a
    model; a DequantizeLinear it leaves alone, to fuse it in its own way, or to run it every time: 1115 us, not 51 (1024
    x 1024 in blocks of 512, M = 1, one thread). The same goes for a scale for each output where what is multiplied is
    float. Does not apply
    to weights that are no constants or that are outputs of the model, to types of other than 4 and 8 bits, to scales
    that are not float32, and where no MatMul or Gemm multiplies by it. The findings name the linears whose weight is
    float in memory, for want of a kernel or because that is faster.
    """
    names, findings = graph.Names(model.graph), []
    fixed = graph.computed_constants(model)  # what is computed when the model is loaded needs no weight afterwards
    for node in list(_in_blocks(model)):
        readers = (reader for reader in graph.readers(node.outputs[0]) if fixed.isdisjoint(reader.outputs))
        layers = [reader for reader in readers if graph.is_standard(reader, "MatMul", "Gemm")]
        findings += [Finding(graph.layer_name(layer), "quantized", _FLOAT_IN_MEMORY) for layer in layers]
        parts = dequantize.of_node(node)
        if parts is None:
            _write_float(model, node, names)
            continue
        value = dequantize.when_loaded(model, node, parts)
        value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
    return tuple(findings)


def codebooks_when_loaded(model: ir.Model) -> tuple[Finding, ...]:
    """Say which linears multiply by a weight from a codebook: ONNX Runtime runs the body once, when it loads the model.

    Its own kernel, MatMulBnb4, has the same levels and dequantizes the weight in every run: 576 us where float takes 45
    (M = 1), 702 and 93 (8), 1165 and 565 (64; 1024 x 1024 in blocks of 64, one thread, Zen 5, onnxruntime 1.31).
    """
    calls = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, CODEBOOK)]
    found = [layer for node in calls for layer in graph.readers(node.outputs[0])]
    return tuple(
        Finding(graph.layer_name(layer), "quantized", _FLOAT_IN_MEMORY)
        for layer in found
        if graph.is_standard(layer, "MatMul", "Gemm")
    )


def _multiplied(model: ir.Model) -> Iterator[tuple[weights.BlockWeight, list[ir.Node]]]:
    """Yield the weights of matrices in blocks, and the products of activations of a known rank that read each."""
    for node in list(model.graph):
        weight = weights.of_node(node)
        if weight is None:
            continue
        value = node.outputs[0]
        products = [reader for reader in graph.readers(value) if _is_product(reader, value)]
        if products:
            yield weight, products


def _is_product(node: ir.Node, weight: ir.Value) -> bool:
    """True for MatMul(x, weight) in the graph of the weight, where x has at least the two axes that a kernel wants."""
    x = node.inputs[0]
    if not graph.is_standard(node, "MatMul") or node.graph is not weight.graph or x is None or x is weight:
        return False
    return node.inputs[1] is weight and x.shape is not None and len(x.shape) > 1


def _in_blocks(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the DequantizeLinear nodes of constants in blocks, or for outputs, that linears multiply by."""
    for node in model.graph:
        if not graph.is_standard(node, "DequantizeLinear"):
            continue
        weight = node.outputs[0]
        known = all(weights.constant(value) is not None for value in node.inputs if value is not None)
        if known and _is_supported(node) and any(_multiplies_by(reader, weight) for reader in graph.readers(weight)):
            yield node


def _write_float(model: ir.Model, node: ir.Node, names: graph.Names) -> None:
    quantized, scale, zero_point = (*node.inputs, None)[:3]
    tensor = weights.constant(quantized)
    assert tensor is not None
    shape, block = tensor.shape.numpy(), node.attributes.get_int("block_size", 0)
    axis = node.attributes.get_int("axis", 1) % len(shape)
    split = [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]]
    filled = shape[axis] % block == 0
    nodes: list[ir.Node] = []

    def write(operator: str, inputs: list[ir.Value | None], attributes: dict[str, int] | None = None) -> ir.Value:
        name = names.new(f"{node.outputs[0].name}.{operator.lower()}")
        nodes.append(ir.node(operator, inputs, attributes or {}, name=name))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    def constant(numbers: list[int]) -> ir.Value:
        name = f"qcompile.shape_{'x'.join(map(str, numbers))}"
        return shared_initializer(model.graph, name, np.array(numbers, np.int64))

    def of_each(value: ir.Value | None) -> ir.Value:
        """The scales or zero points as they are multiplied by the integers, or subtracted."""
        if filled:
            return write("Unsqueeze", [value, constant([axis + 1])])
        places = shared_initializer(model.graph, f"qcompile.blocks_{block}", np.arange(shape[axis]) // block)
        return write("Gather", [value, places], {"axis": axis})

    value = write("Cast", [quantized], {"to": ir.DataType.FLOAT})
    if filled:
        value = write("Reshape", [value, constant(split)])
    if zero_point is not None:
        value = write("Sub", [value, of_each(write("Cast", [zero_point], {"to": ir.DataType.FLOAT}))])
    value = write("Mul", [value, of_each(scale)])
    if filled:
        value = write("Reshape", [value, constant(list(shape))])
    old = node.outputs[0]
    value.type, value.shape = old.type, old.shape
    model.graph.insert_before(node, nodes)
    old.replace_all_uses_with(value)
    model.graph.remove(node, safe=True)


def _multiplies_by(node: ir.Node, weight: ir.Value) -> bool:
    return graph.is_standard(node, "MatMul", "Gemm") and node.inputs[1] is weight


def _is_supported(node: ir.Node) -> bool:
    quantized, scale = (weights.constant(value) for value in node.inputs[:2])
    assert quantized is not None
    assert scale is not None
    if quantized.dtype not in _TYPES or scale.dtype != ir.DataType.FLOAT or node.outputs[0].is_graph_output():
        return False
    if node.attributes.get_int("block_size", 0):
        return True
    readers = graph.readers(node.outputs[0])
    integer = any(
        dequantize.of_value(value) for reader in readers for value in reader.inputs if value is not node.outputs[0]
    )
    return weights.of_node(node) is not None and (quantized.dtype in _FOUR_BITS or not integer)
