"""The forms of a group as models of their own: what a backend makes of them is what it makes of the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from qcompile import qdq
from qcompile.initializers import new_initializer
from qcompile.scheme import Dtype, Scheme
from qcompile.session import Feed
from qcompile.tuning_groups import Group

Form = Literal["integer", "float", "float alone"]
"""Quantized; float where its neighbours stay quantized; float where they are float too."""

OPSET, IR_VERSION = 23, 10
_SCALE = np.float32(1 / 32)
_SPREAD = 0.05
"""Standard deviation of made-up weights."""

_PERIOD = 997
"""Made-up weights repeat after so many: random numbers for all of a large layer take longer than timing it."""


def forms(group: Group, activations: Scheme, weights: Scheme, flowing: Dtype) -> dict[str, ir.Model]:
    """Return the forms of a group, by name; the numbers in them are made up: time depends on shapes.

    Args:
        group: what is built.
        activations: scheme of what the layer reads, and of what a convolution writes.
        weights: scheme of its weight.
        flowing: type of the integers that come from its neighbours and go to them, see `Backend.flowing_dtype`.
    """
    alone = dataclasses.replace(group, reads="float", writes="float")
    made: dict[str, ir.Model] = {
        "integer": _form(group, activations, weights, flowing),
        "float": _form(group, activations, None, flowing),
        "float alone": _form(alone, activations, None, flowing),
    }
    return {name: made[name] for name in form_names(group)}


def form_names(group: Group) -> tuple[Form, ...]:
    """Return the names of the forms that differ."""
    next_to_integers = "integers" in (group.reads, group.writes)
    return ("integer", "float", "float alone") if next_to_integers else ("integer", "float")


def feed_of(model: ir.Model) -> Feed:
    """Return inputs for a form: normally distributed numbers, or integers of all values."""
    generator = np.random.default_rng(0)
    return {str(value.name): _random(value, generator) for value in model.graph.inputs}


def _random(value: ir.Value, generator: np.random.Generator) -> np.ndarray:
    assert value.shape is not None
    assert value.dtype is not None
    shape, dtype = value.shape.numpy(), value.dtype.numpy()
    if value.dtype == ir.DataType.FLOAT:
        return generator.standard_normal(shape, dtype=np.float32)
    bounds = np.iinfo(dtype)
    return generator.integers(bounds.min, bounds.max + 1, shape, dtype=dtype)


def _form(group: Group, activations: Scheme, weights: Scheme | None, flowing: Dtype) -> ir.Model:
    """Return one form; without a scheme of weights the layer is float."""
    integers = group.reads == "integers" or (group.reads == "shared" and weights is not None)
    dtype = ir.DataType.from_numpy(np.dtype(flowing if integers else np.float32))
    x = ir.Value(name="x", shape=ir.Shape(group.x), type=ir.TensorType(dtype))
    graph = ir.Graph([x], [], nodes=[], name="group", opset_imports={"": OPSET})
    model = ir.Model(graph, ir_version=IR_VERSION)
    multiply = _layer(graph, group, x)
    parameters = _parameters(flowing)
    if integers:
        dequantize = ir.node("DequantizeLinear", [x, *_constants(graph, parameters)], name="dequantize")
        graph.insert_before(multiply, dequantize)
        multiply.replace_input_with(0, dequantize.outputs[0])
    elif weights is not None:
        value, _ = qdq.quantized(
            x, multiply, model, activations, None if activations.dynamic else _parameters(activations.dtype)
        )
        multiply.replace_input_with(0, value)
    if weights is not None:
        _quantize_weight(multiply, group, weights)
    if group.writes == "integers" or (group.writes == "rounded" and weights is not None):
        quantized = _append(graph, "QuantizeLinear", [graph[-1].outputs[0], *_constants(graph, parameters)])
        quantized.dtype = ir.DataType.from_numpy(parameters[1].dtype)
        if group.writes == "rounded":
            _append(graph, "DequantizeLinear", [quantized, *_constants(graph, parameters)])
    y = graph[-1].outputs[0]
    y.name = "y"
    graph.outputs.append(y)
    return model


def _parameters(dtype: Dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return a scale and a zero point."""
    return np.asarray(_SCALE), np.array(0 if dtype == "int8" else 128, dtype)


def _layer(graph: ir.Graph, group: Group, x: ir.Value) -> ir.Node:
    """Append the nodes of the float layer, and return the one that multiplies."""
    weight = np.resize(_SPREAD * np.random.default_rng(0).standard_normal(_PERIOD, dtype=np.float32), group.weight)
    inputs = [x, new_initializer(graph, "weight", weight)]
    bias = new_initializer(graph, "bias", np.zeros(_outputs(group), np.float32)) if group.bias else None
    if bias is not None and group.operator != "MatMul":
        inputs.append(bias)
    value = _append(graph, group.operator, inputs, dict(group.attributes))
    multiply = graph[-1]
    if bias is not None and group.operator == "MatMul":
        value = _append(graph, "Add", [value, bias])
    for activation in group.activation:
        bounds = _constants(graph, (np.array(0, np.float32), np.array(6, np.float32)))
        value = _append(graph, activation, [value, *(bounds if activation == "Clip" else [])])
    return multiply


def _quantize_weight(multiply: ir.Node, group: Group, weights: Scheme) -> None:
    weight = multiply.inputs[1]
    assert weight is not None
    low, high = weights.range
    numbers = np.random.default_rng(0).integers(low, high + 1, _PERIOD, dtype=weights.dtype)
    quantized = np.resize(numbers, group.weight)
    axis = 0 if group.operator == "Conv" else 1
    per_channel = weights.granularity == "per_channel"
    shape = (group.weight[axis],) if per_channel else ()
    zero_point = np.full(shape, 0 if weights.dtype == "int8" else 128, weights.dtype)
    scale = np.full(shape, _SPREAD / 32, np.float32)
    new = qdq.dequantized_constant(weight, quantized, scale, zero_point, axis if per_channel else None, multiply)
    multiply.replace_input_with(1, new)
    assert isinstance(multiply.graph, ir.Graph)
    del multiply.graph.initializers[str(weight.name)]


def _outputs(group: Group) -> int:
    if group.operator == "ConvTranspose":
        return group.weight[1] * int(str(dict(group.attributes).get("group", 1)))
    return group.weight[0 if group.operator == "Conv" else 1]


def _constants(graph: ir.Graph, arrays: tuple[np.ndarray, ...]) -> list[ir.Value]:
    return [new_initializer(graph, "constant", array) for array in arrays]


def _append(
    graph: ir.Graph, operator: str, inputs: list[ir.Value], attributes: Mapping[str, Any] | None = None
) -> ir.Value:
    node = ir.node(operator, inputs, attributes or {}, name=f"{operator}_{len(graph)}")
    node.outputs[0].name = f"{node.name}/output"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(node)
    return node.outputs[0]
