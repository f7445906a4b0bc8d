"""How a node of ONNX is written as a call: its attributes, what the lowering fills in, and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from qcompile.backends.fx.host import from_tensor
from qcompile.backends.fx.table import FILLED, Operator
from qcompile.backends.fx.types import tensor_of
from qcompile.errors import UnsupportedOperator

_WITHOUT_MEANING = ("consumed_inputs", "is_test")
"""Attributes of opsets below 7 that say how an operator may be computed, not what."""


def unsupported(node: ir.Node, reason: str) -> UnsupportedOperator:
    """The error for a node, which names its operator."""
    name = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return UnsupportedOperator(f"{name} of {node.name or node.outputs[0].name!r}", reason, "Compile for ONNX Runtime")


def item(values: Sequence[Any], index: int) -> Any:
    """One result of an operator with several."""
    return values[index]


def constant(node: ir.Node, given: Mapping[str, ir.Attr]) -> torch.Tensor:
    """The tensor of a Constant."""
    (attribute,) = resolved(node, given).values()
    if attribute.type == ir.AttributeType.TENSOR:
        return tensor_of(attribute.as_tensor().numpy(), f"Constant {node.name!r}")
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return tensor_of(np.array(attribute.value, np.float32))
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return tensor_of(np.array(attribute.value, np.int64))
    raise unsupported(node, f"its value is of the kind {attribute.type.name}")


def resolved(node: ir.Node, given: Mapping[str, ir.Attr]) -> dict[str, ir.Attr]:
    """Attributes of a node of a function's body, those that refer to the function's own replaced by these."""
    found = {}
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            found[name] = attribute
        elif str(attribute.ref_attr_name) in given:
            found[name] = given[str(attribute.ref_attr_name)]
    return found


def attributes(node: ir.Node, given: Mapping[str, ir.Attr]) -> dict[str, Any]:
    """Attributes of a node as values of Python; tensors as `Host`, graphs and types left out."""
    found: dict[str, Any] = {}
    for name, attribute in resolved(node, given).items():
        if attribute.type == ir.AttributeType.TENSOR:
            found[name] = from_tensor(tensor_of(attribute.as_tensor().numpy(), f"{node.op_type}'s {name}"))
        elif attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            found[name] = tuple(attribute.value)
        elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            found[name] = attribute.value
    return {name: value for name, value in found.items() if name not in _WITHOUT_MEANING}


def keywords(node: ir.Node, entry: Operator, given: Mapping[str, ir.Attr], like: Any) -> dict[str, Any]:
    """Arguments by name: the attributes, and what the lowering fills in, see `table`."""
    found = attributes(node, given)
    unknown = [name for name in found if name not in entry.parameters]
    if unknown:
        raise unsupported(node, f"the attribute {unknown[0]!r} is not known")
    types = tuple(None if value is None else value.dtype for value in node.inputs)
    filled = {
        "like": like,
        "outputs": len(node.outputs),
        "types": types,
        "result": node.outputs[0].dtype,
        "counted": False,
        "in_place": False,
    }
    return found | {name: filled[name] for name in FILLED if name in entry.parameters}


def is_several(node: ir.Node) -> bool:
    """True where the operator may have several outputs: its function then returns a tuple."""
    try:
        outputs = onnx.defs.get_schema(node.op_type, domain=node.domain).outputs
    except onnx.defs.SchemaError:
        return len(node.outputs) > 1
    return len(outputs) > 1 or outputs[0].option == onnx.defs.OpSchema.FormalParameterOption.Variadic


def results(node: ir.Node, made: Any) -> Sequence[Any]:
    """What a function returned, one for each output."""
    return made if is_several(node) else (made,)
