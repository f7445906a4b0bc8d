"""A model in float64: what it means, with next to nothing of what float32 rounds. Independent of what compiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

_TYPES = {"Attention": "softmax_precision", "Cast": "to", "DequantizeLinear": "output_dtype", "EyeLike": "dtype"}
"""Operators that are told the type of what they compute, and the attribute that says it."""


def in_float64(model: ir.Model) -> ir.Model:
    """Return a copy for the reference evaluation with float64 in the place of float32; float16 and integers stay.

    Numbers are those of float32: weights are not rounded again, nor are constants. Types of values are not changed,
    which that evaluation does not read; weights are converted when they are asked for.
    """
    double = model.clone()
    parts = [double.graph, *(function.graph for function in double.functions.values())]
    for graph in itertools.chain.from_iterable((part, *part.subgraphs()) for part in parts):
        for value in graph.initializers.values():
            value.const_value = None if value.const_value is None else _tensor(value.const_value)
        for node in graph:
            for item in list(node.attributes.values()):
                changed = _attribute(node.op_type, item)
                if changed is not item:
                    del node.attributes[item.name]
                    node.attributes.add(changed)
    return double


def _tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype != ir.DataType.FLOAT:
        return tensor

    def converted() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float64))

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(converted, dtype=ir.DataType.DOUBLE, shape=shape, name=tensor.name)


def _attribute(operator: str, item: ir.Attr) -> ir.Attr:
    """Return the attribute for float64; the same one where it says nothing of float32."""
    if item.is_ref():
        return item
    if item.type == ir.AttributeType.TENSOR and item.as_tensor().dtype == ir.DataType.FLOAT:
        return ir.AttrTensor(item.name, ir.tensor(item.as_tensor().numpy().astype(np.float64)))
    if operator == "Constant" and item.name in _CONSTANTS:
        return ir.AttrTensor("value", ir.tensor(np.array(_CONSTANTS[item.name](item), np.float32).astype(np.float64)))
    if _TYPES.get(operator) == item.name and item.as_int() == ir.DataType.FLOAT:
        return ir.AttrInt64(item.name, ir.DataType.DOUBLE)
    return item


_CONSTANTS: dict[str, Callable[[ir.Attr], object]] = {
    "value_float": lambda item: item.as_float(),
    "value_floats": lambda item: item.as_floats(),
}
