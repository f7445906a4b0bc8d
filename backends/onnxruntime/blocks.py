"""Weights with a scale for each block, as files hold them that came quantized to 4 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends import Site
from qcompile.backends.onnxruntime.linears import CONTRIB
from qcompile.initializers import register_initializer, shared_initializer

IN_BLOCKS, FLOAT = "in blocks", "float"
_FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_TYPES = _FOUR_BITS | {ir.DataType.INT8, ir.DataType.UINT8}
_MIDDLE = 8
"""What MatMulNBits subtracts from numbers of 4 bits that have no zero point."""


def block_weights(model: ir.Model) -> list[Site]:
    """Return the sites of DequantizeLinear(constant of 4 bits, block_size=b) -> MatMul, in graph order.

    "in blocks" is MatMulNBits, told not to round the activation; "float" is a float weight, computed when the model is
    loaded: the file stays as small, the memory is that of float. Measured in us, in blocks and float, one thread, Zen 5
    with AVX512-VNNI, onnxruntime 1.31: 1024 x 1024 in blocks of 32: 51 and 52 (M = 1), 166 and 57 (4), 209 and 97 (8),
    263 and 145 (16), 1354 and 1195 (128); 2048 x 8192 in blocks of 128: 626 and 1899 (1), 2874 and 2745 (2), 4710 and
    5317 (16). One kernel is for weights that one product reads, in blocks of 16, 32, 64, 128 or 256 inputs.
    """
    sites = []
    for node in _in_blocks(model):
        tensor, product = graph.constant(node.inputs[0]), graph.sole_reader(node.outputs[0])
        assert tensor is not None
        if product is None or not graph.is_standard(product, "MatMul") or tensor.dtype not in _FOUR_BITS:
            continue
        x, axis = product.inputs[0], node.attributes.get_int("axis", 1)
        matrices = len(tensor.shape) == 2 and x is not None and x.shape is not None and len(x.shape) > 1
        if matrices and axis in (0, -2) and node.attributes.get_int("block_size", 0) in (16, 32, 64, 128, 256):
            sites.append(Site("weight in blocks", (node, product), (IN_BLOCKS, FLOAT)))
    return sites


def multiply_in_blocks(model: ir.Model) -> None:
    """MatMul(x, DequantizeLinear(q, s, z, block_size=b))  ->  MatMulNBits(x, q, s, z), where a site is written so.

    Does not apply to what `block_weights` leaves out. ONNX Runtime would fuse the same by itself, and round the
    activation to 8 bits for each block, which nobody asked for: 12 such linears in a row are 4.6 quantization steps
    off. With 8 bits its kernel is no faster than to dequantize at every run.
    """
    names = graph.Names(model.graph)
    for site in block_weights(model):
        if site.form == IN_BLOCKS:
            dequantize, product = site.nodes
            _write_product(model, dequantize, product, names)


def dequantize_blocks_when_loaded(model: ir.Model) -> None:
    """DequantizeLinear(q, s, z, block_size=b)  ->  (Cast(q) - Cast(z)) * s over blocks, where a linear reads it.

    The axis of the blocks is split in two, [.., n * b, ..] to [.., n, b, ..], and joined again. ONNX Runtime evaluates
    operators of constants when it loads a model; a DequantizeLinear it leaves alone, to fuse it in its own way, or to
    run it every time: 1115 us, not 51 (1024 x 1024 in blocks of 512, M = 1, one thread). Does not apply to weights
    that are no constants or that are outputs of the model, to types of other than 4 and 8 bits, to scales that are not
    float32, where the last block is not filled, and where no MatMul or Gemm multiplies by it.
    """
    names = graph.Names(model.graph)
    for node in list(_in_blocks(model)):
        _write_float(model, node, names)


def _in_blocks(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the DequantizeLinear nodes of constants in blocks that linears multiply by."""
    for node in model.graph:
        if not graph.is_standard(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) == 0:
            continue
        weight = node.outputs[0]
        known = all(graph.constant(value) is not None for value in node.inputs if value is not None)
        if known and _is_supported(node) and any(_multiplies_by(reader, weight) for reader in graph.readers(weight)):
            yield node


def _write_product(model: ir.Model, node: ir.Node, matmul: ir.Node, names: graph.Names) -> None:
    weight, scale, zero_point = (*map(graph.constant, node.inputs), None)[:3]
    assert weight is not None
    assert scale is not None
    inputs, outputs = weight.shape.numpy()
    block, signed = node.attributes.get_int("block_size", 0), weight.dtype == ir.DataType.INT4

    def initializer(suffix: str, array: np.ndarray) -> ir.Value:
        name = names.new(f"{node.outputs[0].name}.{suffix}")
        return register_initializer(model.graph, ir.tensor(array, name=name))

    values: list[ir.Value | None] = [
        matmul.inputs[0],
        initializer("packed", pack(unsigned(weight.numpy()).T).reshape(outputs, inputs // block, block // 2)),
        initializer("scales", np.ascontiguousarray(scale.numpy().T).reshape(-1)),
    ]
    if zero_point is not None or not signed:
        zeros = np.zeros(scale.shape.numpy(), np.uint8) if zero_point is None else unsigned(zero_point.numpy())
        values.append(initializer("zero_points", pack(zeros.T).reshape(-1)))
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": 1}
    product = ir.node("MatMulNBits", values, attributes, domain=CONTRIB, name=matmul.name)
    product.metadata_props.update(matmul.metadata_props)
    old, new = matmul.outputs[0], product.outputs[0]
    new.shape, new.type = old.shape, old.type
    model.graph.insert_before(matmul, product)
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
    model.graph.remove(matmul, safe=True)
    model.graph.remove(node, safe=True)


def unsigned(numbers: np.ndarray) -> np.ndarray:
    """Return numbers of 4 bits, of ml_dtypes, as uint8 from 0 to 15: those of int4 with 8 added."""
    return (numbers.astype(np.int8) + (_MIDDLE if numbers.dtype.name == "int4" else 0)).astype(np.uint8)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Return two numbers of 4 bits in each byte, the first in its lower half: [m, n] -> [m, ceil(n / 2)]."""
    even = np.pad(numbers, ((0, 0), (0, numbers.shape[1] % 2)))
    packed: np.ndarray = even[:, 0::2] | even[:, 1::2] << 4
    return packed


def _write_float(model: ir.Model, node: ir.Node, names: graph.Names) -> None:
    quantized, scale, zero_point = (*node.inputs, None)[:3]
    tensor = graph.constant(quantized)
    assert tensor is not None
    shape, block = tensor.shape.numpy(), node.attributes.get_int("block_size", 0)
    axis = node.attributes.get_int("axis", 1) % len(shape)
    split = [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]]
    nodes: list[ir.Node] = []

    def write(operator: str, inputs: list[ir.Value | None], attributes: dict[str, int] | None = None) -> ir.Value:
        name = names.new(f"{node.outputs[0].name}.{operator.lower()}")
        nodes.append(ir.node(operator, inputs, attributes or {}, name=name))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    def constant(numbers: list[int]) -> ir.Value:
        name = f"qcompile.shape_{'x'.join(map(str, numbers))}"
        return shared_initializer(model.graph, name, np.array(numbers, np.int64))

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
