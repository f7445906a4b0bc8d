"""Graphs inside a node, as modules of their own; and operators that are functions, as nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from torch import fx

from qcompile.backends.fx import calls
from qcompile.graph import is_standard, numbered

if TYPE_CHECKING:
    from qcompile.backends.fx.scope import Scope

__all__ = ["body", "drop_absent", "function_of", "is_counted", "numbered"]


def body(scope: Scope, graph: ir.Graph, name: str) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The node of a new submodule for a graph, and the nodes of what it reads from around, which follow its inputs."""
    inner = type(scope)(scope.model, scope.opsets, scope)
    inner.attributes = scope.attributes
    for index, value in enumerate(graph.inputs):
        inner.give(value, scope.placed(inner.graph.placeholder(f"given_{index}")))
    inner.nodes(graph)
    inner.graph.output(tuple(inner.tensor(value) for value in graph.outputs))
    name = next(new for new in numbered(name) if not hasattr(scope.root, new))
    scope.root.add_module(name, inner.module())
    return scope.graph.get_attr(name), tuple(inner.captured)


def is_counted(node: ir.Node, graph: ir.Graph) -> bool:
    """True for the body of a Loop whose condition holds for ever, so that the number of turns alone ends it."""
    given, made = node.inputs[1], graph.outputs[0]
    if given is not None and (given.const_value is None or not given.const_value.numpy().all()):
        return False
    producer = made.producer()
    while producer is not None and is_standard(producer, "Identity"):
        source = producer.inputs[0]
        assert source is not None
        made, producer = source, source.producer()
    if producer is not None and is_standard(producer, "Constant"):
        return bool(producer.attributes["value"].as_tensor().numpy().all())
    return made is graph.inputs[1] or (made.const_value is not None and bool(made.const_value.numpy().all()))


def function_of(
    model: ir.Model, node: ir.Node, opsets: Mapping[str, int], given: Mapping[str, ir.Attr]
) -> tuple[ir.Function, Mapping[str, ir.Attr]]:
    """A copy of the function that the model or ONNX has for a node, and the attributes that its body refers to."""
    attributes = calls.resolved(node, given)
    own = model.functions.get(node.op_identifier())
    if own is not None:
        defaults = {name: attribute for name, attribute in own.attributes.items() if attribute.value is not None}
        return own.clone(), defaults | attributes
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        raise calls.unsupported(node, "neither ONNX nor the model defines it in this opset") from None
    proto = _standard(schema, node, opsets.get(node.domain, 1), attributes)
    defaults = {
        name: ir.serde.deserialize_attribute(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    return ir.serde.deserialize_function(proto), defaults | attributes


def _standard(schema: Any, node: ir.Node, opset: int, attributes: Mapping[str, ir.Attr]) -> onnx.FunctionProto:
    """ONNX's own function for a node, made for the types of its inputs where it depends on them.

    The schema is an onnx.defs.OpSchema, of which onnx's stubs lack what makes functions.
    """
    proto = onnx.FunctionProto()
    if schema.has_function:
        fitting = [version for version in schema.function_opset_versions if version <= opset]
        proto.ParseFromString(schema.get_function_with_opset_version(max(fitting, default=schema.since_version)))
    elif schema.has_context_dependent_function and all(value is None or value.type for value in node.inputs):
        versions = schema.context_dependent_function_opset_versions
        fitting = [version for version in versions if version <= opset]
        written = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        written.input.extend("" if value is None else str(value.name) for value in node.inputs)
        written.output.extend(str(value.name or "") for value in node.outputs)
        written.attribute.extend(map(ir.serde.serialize_attribute, attributes.values()))
        types = [_type(value) for value in node.inputs]
        version = max(fitting, default=schema.since_version)
        proto.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(version, written.SerializeToString(), types)
        )
    else:
        raise calls.unsupported(node, "it is not in the table, and has no function of ONNX")
    return proto


def _type(value: ir.Value | None) -> bytes:
    if value is None:
        return bytes(onnx.TypeProto().SerializeToString())
    return bytes(ir.serde.serialize_value(value).type.SerializeToString())


def drop_absent(function: ir.Function, inputs: Sequence[object]) -> None:
    """Take inputs that are not given out of the nodes of a function's body."""
    absent = [value for value, operand in zip(function.inputs, inputs, strict=True) if operand is None]
    for value in absent:
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, None)
