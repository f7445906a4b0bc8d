"""Weights in blocks in the form that OpenVINO's linears read as they are stored: integers, and scales of groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.backends.openvino import normal_floats
from qcompile.backends.openvino.normal_floats import NormalFloats
from qcompile.backends.openvino.runtime import openvino, opset
from qcompile.backends.openvino.tied_tables import gather_of_weight
from qcompile.block_functions import CODEBOOK
from qcompile.block_weights import BlockWeight
from qcompile.contract import Finding
from qcompile.qdq import DOMAIN

if TYPE_CHECKING:
    import openvino as ov

_SMALLEST = 8
"""Inputs that share a scale at least: with fewer, the scales take as much room as a float weight, and x is padded."""

_NARROW = 4
"""Bits of the integers that are read two from a byte."""

_IN_BYTES = {2: 4, 4: 2}
"""Bits of an integer -> how many make a byte."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a weight is stored.

    Attributes:
        dtype: name of OpenVINO's element type: u2, u4, i4, u8 or i8.
        group_size: inputs that share a scale; divides `inputs`.
        inputs: those of the weight, and zeros behind them where they do not fill the last group.
    """

    dtype: str
    group_size: int
    inputs: int

    @property
    def bits(self) -> int:
        """Bits of each integer."""
        return int(self.dtype[1:])


def storage(weight: BlockWeight) -> Storage | None:
    """Return the narrowest type and the largest groups in which OpenVINO computes with just this weight; None: none.

    Groups that are not filled become smaller ones with repeated scales, or are filled. What it computes wrong is left
    out (measured, 2026.4): of less than a byte, rows that do not end with one (33 x 64 was off by half of its range),
    and groups that are no power of two (of 48, for 1 to 3 tokens); of bytes, groups of 11 and 17. Signed types have no
    zero point: OpenVINO does not round the activations of i4 with one at run time.
    """
    size, inputs = weight.block_size, weight.inputs
    if size < inputs and inputs % size:
        common = math.gcd(size, inputs)
        size, inputs = (common, inputs) if common >= _SMALLEST else (size, -(-inputs // size) * size)
    power = size & -size
    narrow = weight.narrowest() if size == inputs or power >= _SMALLEST else 8
    kind = "i" if weight.signed and not weight.zero_points(weight.block_size).any() else "u"
    if narrow == 2 and power >= _IN_BYTES[2]:
        return Storage("u2", size if size == inputs else power, inputs)
    if narrow <= _NARROW and power >= _IN_BYTES[_NARROW]:
        return Storage(f"{kind}{_NARROW}", size if size == inputs else power, inputs)
    return Storage(f"{kind}8", size, inputs) if size == inputs or size % 4 == 0 else None


def hide_weights(model: ir.Model) -> dict[str, BlockWeight | NormalFloats]:
    """MatMul(x, DequantizeLinear(q, s, z))  ->  MatMul(x, an input of the model); return name of the input -> weight.

    The same for DequantizeCodebook of the levels of NF4.

    The ONNX front end would write it in a form that is unpacked to float when the model is compiled, computes blocks
    along the outputs wrong, and ends the process for 4 bits with one scale (measured, 2026.4). `show_weights` puts the
    weights in their places again. Does not apply to a symmetric weight of 8 bits with a scale for each output, which
    `compress_weights` sees to, in bodies, where the product is of constants alone, where x is a vector or has been
    dequantized, and where OpenVINO has no form for it: see `storage`.
    """
    hidden: dict[str, BlockWeight | NormalFloats] = {}
    names, fixed = graph.Names(model.graph), graph.computed_constants(model)
    for node in list(model.graph):
        weight = _compressed(node)
        if weight is None or node.outputs[0].is_graph_output():
            continue
        value = node.outputs[0]
        products = [use.node for use in value.uses() if use.idx == 1 and is_weight_only(use.node, fixed)]
        if len(products) < len(value.uses()):
            continue
        shape = ir.Shape((weight.inputs, weight.outputs))
        given = ir.Value(name=names.new(f"{value.name}.hidden"), shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        model.graph.inputs.append(given)
        value.replace_all_uses_with(given)
        if isinstance(weight, BlockWeight) and not _missing(weight):
            gather_of_weight(model, weight, given)
        model.graph.remove(node, safe=True)
        hidden[str(given.name)] = weight
    return hidden


def _compressed(node: ir.Node) -> BlockWeight | NormalFloats | None:
    weight = block_weights.of_node(node)
    if weight is None:
        return normal_floats.of_node(node)
    return None if _is_compressed_later(weight) or storage(weight) is None else weight


def expanded_when_loaded(model: ir.Model) -> tuple[Finding, ...]:
    """Say which linears multiply by a weight in blocks, or of a codebook, that OpenVINO has no compressed form for."""
    findings = []
    for node in model.graph:
        made = node.inputs[1].producer() if is_weight_only(node) and node.inputs[1] is not None else None
        weight = block_weights.of_node(made)
        if made is None or not (weight or (made.domain, made.op_type) == (DOMAIN, CODEBOOK)) or _compressed(made):
            continue
        if weight is None or not _is_compressed_later(weight):
            reason = "its weight is float in memory: OpenVINO has no compressed form of it"
            findings.append(Finding(graph.layer_name(node), "quantized", reason))
    return tuple(findings)


def is_weight_only(node: ir.Node, fixed: frozenset[ir.Value] = frozenset()) -> bool:
    """True for a MatMul of the main graph whose first operand is a matrix that is computed in float."""
    x = node.inputs[0] if graph.is_standard(node, "MatMul") else None
    if x is None or x in fixed or graph.constant(x) is not None:
        return False
    known = x.shape is None or len(x.shape) > 1
    return known and not graph.is_standard(x.producer(), "DequantizeLinear")


def _is_compressed_later(weight: BlockWeight) -> bool:
    whole = weight.block_size >= weight.inputs and "block_size" not in weight.node.attributes
    return whole and weight.integers.dtype == ir.DataType.INT8 and not weight.zero_points(weight.inputs).any()


def show_weights(model: ov.Model, hidden: Mapping[str, BlockWeight | NormalFloats]) -> None:
    """MatMul(x, an input)  ->  MatMul(x, Reshape((Convert(W) - Convert(z)) * s), transposed), where W was hidden.

    The same for Gather(Transpose(an input), ids), of a table that the weight is too.
    """
    factory = opset()
    for parameter in list(model.get_parameters()):
        weight = hidden.get(parameter.get_friendly_name())
        if weight is None:
            continue
        value, missing = _decompressed_of(weight)
        for port in list(parameter.output(0).get_target_inputs()):
            product = port.get_node()
            if product.get_type_name() == "Transpose":
                product.output(0).replace(value)
                continue
            x = _padded(product.input_value(0), missing)
            linear = factory.matmul(x, value, product.get_attributes()["transpose_a"], True)
            linear.set_friendly_name(product.get_friendly_name())
            linear.output(0).get_tensor().set_names(product.output(0).get_names())
            product.output(0).replace(linear.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _decompressed_of(weight: BlockWeight | NormalFloats) -> tuple[ov.Output, int]:
    """Return the float weight as OpenVINO computes it, and how many inputs of zeros are behind its own."""
    if isinstance(weight, NormalFloats):
        return weight.decompressed(_constant), 0
    stored = storage(weight)
    assert stored is not None
    return _decompressed(weight, stored), _missing(weight)


def _missing(weight: BlockWeight) -> int:
    """Return how many inputs of zeros are stored behind those of a weight."""
    stored = storage(weight)
    assert stored is not None
    return stored.inputs - weight.inputs


def _decompressed(weight: BlockWeight, stored: Storage) -> ov.Output:
    """Return the float weight [outputs, inputs] as OpenVINO computes it from its constants."""
    factory, outputs = opset(), weight.outputs
    groups = stored.inputs // stored.group_size
    shape = [outputs, groups, stored.group_size] if groups > 1 else [outputs, stored.inputs]
    middle = 2 ** (stored.bits - 1) if weight.signed and stored.dtype.startswith("u") else 0
    numbers = np.pad(weight.integers.numpy().astype(np.int16).T + middle, ((0, 0), (0, stored.inputs - weight.inputs)))
    integers = _constant(numbers.reshape(shape), stored.dtype)
    integers.set_friendly_name(str(weight.integers.name))
    value = factory.convert(integers, "f32")
    ends = [*shape[:-1], 1]
    zeros = weight.zero_points(stored.group_size) + middle
    if zeros.any():
        points = factory.convert(_constant(zeros.T.reshape(ends), stored.dtype), "f32")
        value = factory.subtract(value, points)
    scales = np.ascontiguousarray(weight.scales(stored.group_size).T).reshape(ends)
    value = factory.multiply(value, factory.constant(scales))
    if groups > 1:
        value = factory.reshape(value, factory.constant(np.array([outputs, stored.inputs])), False)
    return value.output(0)


def _padded(x: ov.Output, count: int) -> ov.Output:
    """Return x with zeros behind its last axis; its rank is known: the front end infers that of every operator."""
    if not count:
        return x
    rank = x.get_partial_shape().rank.get_length()
    ends = np.array([0] * (rank - 1) + [count])
    padded: ov.Output = opset().pad(x, np.zeros(rank, np.int64), ends, "constant", np.float32(0)).output(0)
    return padded


def _constant(numbers: np.ndarray, dtype: str) -> ov.Node:
    """Return a Constant of integers of an element type; several of less than a byte share one, the first lowest."""
    bits = int(dtype[-1])
    if bits == 8:
        return opset().constant(numbers.astype(np.int8 if dtype == "i8" else np.uint8))
    flat = np.pad(numbers.reshape(-1), (0, -numbers.size % (8 // bits)))
    parts = (flat.reshape(-1, 8 // bits) & (2**bits - 1)).astype(np.uint8)
    packed = np.zeros(len(parts), np.uint8)
    for place in range(8 // bits):
        packed |= parts[:, place] << np.uint8(bits * place)
    ov_ = openvino()
    tensor = ov_.Tensor(packed, ov_.Shape(list(numbers.shape)), getattr(ov_.Type, dtype))
    return opset().constant(tensor, shared_memory=False)
