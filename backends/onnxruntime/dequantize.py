"""DequantizeLinear nodes as data: what they read, and their value when that is constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import register_initializer


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """value = (quantized - zero_point) * scale.

    Attributes:
        node: the DequantizeLinear node.
        quantized: integer value, any shape.
        scale: float value, shape [] or [size of `axis`]; not always a constant.
        zero_point: value of the type of `quantized` and the shape of `scale`, or None for zero.
        axis: axis along which scales differ; of no meaning when there is one scale.
    """

    node: ir.Node
    quantized: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    axis: int

    @property
    def scale_shape(self) -> tuple[int | None, ...] | None:
        """Shape of the scale; None when the graph does not tell."""
        tensor = graph.constant(self.scale)
        shape = self.scale.shape if tensor is None else tensor.shape
        return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)

    @property
    def per_tensor(self) -> bool:
        """True when it is certain that one scale holds for all elements."""
        producer = self.scale.producer()
        return self.scale_shape in ((), (1,)) or graph.is_standard(producer, "DynamicQuantizeLinear")


def of_node(node: ir.Node | None) -> Dequantized | None:
    """Return the parts of a DequantizeLinear node; None for other nodes and for scales per block."""
    if node is None or not graph.is_standard(node, "DequantizeLinear"):
        return None
    quantized, scale = node.inputs[0], node.inputs[1]
    if quantized is None or scale is None or node.attributes.get_int("block_size", 0) != 0:
        return None
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    return Dequantized(node, quantized, scale, zero_point, node.attributes.get_int("axis", 1))


def of_value(value: ir.Value | None) -> Dequantized | None:
    """Return the parts of the DequantizeLinear that makes the value; None when another node makes it."""
    return None if value is None else of_node(value.producer())


def insert(
    model: ir.Model, before: ir.Node, old: Dequantized, suffix: str, inputs: Sequence[ir.Value], axis: int
) -> ir.Value:
    """Write DequantizeLinear(*inputs) in front of a node that is to read it in the place of another; return its value.

    Its name is that of the other with a suffix, and a number where several nodes that read the other get their own.
    """
    replaced = old.node.outputs[0]
    name = graph.unique_name(model.graph, f"{replaced.name}.{suffix}")
    new = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=name)
    new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = name, replaced.type, replaced.shape
    model.graph.insert_before(before, new)
    return new.outputs[0]


def pair(
    value: ir.Value,
    name: str,
    dtype: ir.TypeProtocol | None,
    scales: Sequence[ir.Value | None],
    attributes: Mapping[str, ir.Attr | int],
) -> tuple[ir.Node, ir.Node]:
    """Make QuantizeLinear(value, *scales) and the DequantizeLinear behind it, for a caller who puts them into a graph.

    The result gets the name, `dtype` is of the integers, and the attributes are those of QuantizeLinear.
    """
    quantize = ir.node("QuantizeLinear", [value, *scales], attributes, name=f"{name}.quantize")
    quantize.outputs[0].name = f"{name}.quantized"
    quantize.outputs[0].type, quantize.outputs[0].shape = dtype, value.shape
    axis = {"axis": attributes["axis"]} if "axis" in attributes else {}
    again = ir.node("DequantizeLinear", [quantize.outputs[0], *scales], axis, name=f"{name}.dequantize")
    again.outputs[0].name, again.outputs[0].type, again.outputs[0].shape = name, value.type, value.shape
    return quantize, again


def as_float_constant(model: ir.Model, value: ir.Value | None) -> ir.Value | None:
    """Return an initializer with the value: itself, or the float result of a DequantizeLinear of constants.

    The float result is computed when it is written, so that no second copy of a large weight is held. None when the
    value depends on the inputs of the model.
    """
    if value is None or graph.constant(value) is not None:
        return value
    parts = of_value(value)
    if parts is None or not all(graph.constant(v) is not None for v in (parts.quantized, parts.scale)):
        return None
    if parts.scale.dtype != ir.DataType.FLOAT or (parts.zero_point and graph.constant(parts.zero_point) is None):
        return None
    name = f"{value.name}.float"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    quantized = graph.constant(parts.quantized)
    assert quantized is not None
    lazy = ir.LazyTensor(
        lambda: ir.tensor(evaluate(parts), name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(quantized.shape.numpy()),
        name=name,
    )
    return register_initializer(model.graph, lazy)


def when_loaded(model: ir.Model, matmul: ir.Node, old: Dequantized) -> ir.Value:
    """Write (quantized - zero_point) * scale in front of a MatMul that is to read it, and return that value.

    ONNX Runtime computes it once, and keeps DequantizeLinear for every run. Scales are one, or one for each column.
    """
    tape = ir.tape.Tape()
    value = tape.op("Cast", [old.quantized], {"to": ir.DataType.FLOAT})
    if old.zero_point is not None:
        value = tape.op("Sub", [value, tape.op("Cast", [old.zero_point], {"to": ir.DataType.FLOAT})])
    value = tape.op("Mul", [value, old.scale])
    names = graph.Names(model.graph)
    for node in tape.nodes:
        node.name = names.new(f"{matmul.outputs[0].name}.weight.{node.op_type}")
        node.outputs[0].name = names.new(f"{node.name}.value")
    model.graph.insert_before(matmul, tape.nodes)
    return value


def evaluate(parts: Dequantized) -> np.ndarray:
    """Return (quantized - zero_point) * scale of constants in float32."""
    quantized, scale = graph.constant_array(parts.quantized), graph.constant_array(parts.scale)
    assert quantized is not None
    assert scale is not None
    zero = graph.constant_array(parts.zero_point)
    shape = [1] * quantized.ndim
    if scale.size > 1:
        shape[parts.axis] = -1
    centred = quantized.astype(np.int32)
    if zero is not None:
        centred = centred - zero.astype(np.int32).reshape(shape)
    return (centred.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(np.float32)
