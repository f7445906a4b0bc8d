"""Layers that a recipe quantizes: linears and convolutions behind one set of questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable

import onnx_ir as ir

from qcompile.contract import Action, Finding
from qcompile.graph import (
    Convolution,
    Linear,
    constant,
    constant_array,
    convolutions,
    is_standard,
    linears,
    sole_reader,
)
from qcompile.outlier_columns import is_outliers
from qcompile.qdq import is_dequantized
from qcompile.scheme import Scheme
from qcompile.solvers import broken_numbers

Layer = Linear | Convolution

# A per-tensor u8 x s8 product adds up to 255 * 128 per input feature; int32 holds 2**31 - 1.
_INT32_MAX = 2**31 - 1


def every_layer(model: ir.Model) -> list[Layer]:
    """Linears and convolutions with a constant weight of any type, in graph order."""
    position = {node: index for index, node in enumerate(model.graph)}
    found: list[Layer] = [*linears(model), *convolutions(model)]
    return sorted(found, key=lambda layer: position[node_of(layer)])


def float_layers(model: ir.Model) -> list[Layer]:
    """Linears and convolutions whose weight is a constant float32 tensor, in graph order.

    One that reads what comes straight out of quantization is not among them: somebody has quantized half of it. Nor is
    what multiplies the outliers of a split linear: it is there to stay float.
    """
    return [
        layer
        for layer in every_layer(model)
        if layer.weight.dtype == ir.DataType.FLOAT and not is_dequantized(layer.x) and not is_outliers(layer.x)
    ]


def float_linears(model: ir.Model) -> list[Linear]:
    """The linears of `float_layers`."""
    return [layer for layer in float_layers(model) if isinstance(layer, Linear)]


def embeddings(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Return the tables of embeddings -> the Gathers that read them, in graph order.

    A table is a constant matrix of floating type; its rows have more than one number: they are not smaller than a scale
    otherwise.
    """
    tables: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        table = node.inputs[0] if is_standard(node, "Gather") and node.inputs else None
        if table is not None and _is_table(table):
            tables.setdefault(table, []).append(node)
    return tables


def _is_table(value: ir.Value) -> bool:
    tensor = constant(value)
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2:
        return False
    return int(tensor.shape.numpy()[1]) > 1


def node_of(layer: Layer) -> ir.Node:
    """The node that multiplies."""
    return layer.matmul if isinstance(layer, Linear) else layer.node


def operator(layer: Layer) -> str:
    """Linear, Conv or ConvTranspose: the operator of a backend's capabilities."""
    return "Linear" if isinstance(layer, Linear) else layer.node.op_type


def input_axis(layer: Layer) -> int:
    """Channel axis of the layer's input: -1 for linears, 1 for convolutions."""
    return -1 if isinstance(layer, Linear) else 1


def output_axis(layer: Layer) -> int:
    """Axis of the weight along which each output channel has its own scale."""
    return 1 if isinstance(layer, Linear) or layer.transposed else 0


def outputs(layer: Layer) -> int:
    """How many output channels the weight has; of a grouped ConvTranspose, those of one group."""
    shape = layer.weight.shape
    return 0 if shape is None else int(shape.numpy()[output_axis(layer)])


def accumulated(layer: Layer) -> int:
    """How many products are added up for one output element."""
    shape = list(layer.weight.shape.numpy()) if layer.weight.shape is not None else []
    if isinstance(layer, Linear):
        return shape[0]
    return math.prod(shape[: output_axis(layer)] + shape[output_axis(layer) + 1 :])


def refusal(layer: Layer, activations: Scheme, weights: Scheme) -> str:
    """Why this layer cannot be computed in 8-bit integers; empty when it can."""
    tensor = layer.weight.const_value
    assert tensor is not None
    if tensor.size == 0:
        return "its weight is empty"
    largest = max(abs(bound) for bound in activations.range) * max(abs(bound) for bound in weights.range)
    if accumulated(layer) * largest > _INT32_MAX:
        return f"{accumulated(layer)} products of 8-bit values overflow the int32 accumulator"
    broken = broken_numbers.of_weight(tensor.numpy())
    if broken:
        return f"its weight {broken}"
    if isinstance(layer, Convolution) and (broken := broken_numbers.of_bias(constant_array(layer.bias))):
        return f"its bias {broken}"
    if isinstance(layer, Linear) and layer.x.shape is not None and len(layer.x.shape) == 1:
        return "its input is a vector: runtimes misread the quantized product of a vector and a matrix"
    if isinstance(layer, Convolution) and activations.dynamic:
        return "dynamic quantization is for linears: runtimes have no fast integer convolution with dynamic scales"
    return ""


def finding(layer: Layer, action: Action, reason: str = "", sqnr_db: float | None = None) -> Finding:
    """Return what is said of a layer."""
    shape = () if layer.weight.shape is None else tuple(layer.weight.shape.numpy())
    value = str(node_of(layer).outputs[0].name)
    return Finding(layer.name, action, reason, operator(layer), sqnr_db, value, shape)


def left_out(asked: Finding, ignore: Collection[str], operators: Collection[str]) -> Finding | None:
    """Finding for a layer that stays float before anyone looks at it; None: it may be quantized.

    Args:
        asked: names the layer and its operator, as the capabilities of backends do.
        ignore: names that the recipe leaves float.
        operators: what the backend computes in integers, or stores in 8 bits.
    """
    if asked.layer in ignore:
        return dataclasses.replace(asked, action="ignored", reason="the recipe leaves it out")
    if asked.operator not in operators:
        reason = f"the backend has no integer {asked.operator} with these schemes"
        return dataclasses.replace(asked, action="kept", reason=reason)
    return None


def activated_output(layer: Convolution) -> ir.Value:
    """The value behind the convolution's activation function, where Relu or Clip alone reads its output."""
    value = layer.output
    while True:
        reader = sole_reader(value)
        if reader is None or not is_standard(reader, "Relu", "Clip") or reader.inputs[0] is not value:
            return value
        value = reader.outputs[0]


def flowing_outputs(chosen: Iterable[Layer]) -> list[ir.Value]:
    """Outputs of convolutions, behind their activation function, that other nodes read and the user does not."""
    outputs = [activated_output(layer) for layer in chosen if isinstance(layer, Convolution)]
    return [value for value in outputs if value.uses() and not value.is_graph_output()]


def of_convolution(value: ir.Value) -> bool:
    """True for what a convolution reads, or writes, its activation function in between."""
    if any(is_standard(reader, "Conv", "ConvTranspose") for reader in value.consumers()):
        return True
    producer = value.producer()
    while producer is not None and is_standard(producer, "Relu", "Clip") and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return is_standard(producer, "Conv", "ConvTranspose")


def input_channels(layer: Layer) -> int:
    """Return how many input channels a layer has; its weight must have a known shape."""
    assert layer.weight.shape is not None
    inputs, of_group = layer.weight.shape.numpy()[:2]
    if isinstance(layer, Convolution) and not layer.transposed:
        return int(of_group * layer.node.attributes.get_int("group", 1))
    return int(inputs)
