"""Conversion of a whole model to another opset: upwards by libraries, downwards where nothing changes meaning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnxscript import version_converter

from qcompile.graph import all_nodes, is_standard
from qcompile.rewriting import copy_names

_LIBRARY_FROM = 18
"""Lowest opset of onnxscript's converter; what is older goes through onnx's own converter first."""


def raise_opset(model: ir.Model, opset: int) -> str:
    """Convert upwards in place; returns the reason where that fails, else an empty text."""
    for step in (_LIBRARY_FROM, opset):
        if model.opset_imports[""] >= step:
            continue
        with _warnings_of("onnxscript.version_converter", "onnx_ir") as warnings:
            version_converter.ConvertVersionPass(target_version=step, fallback=True)(model)
        # The converters tell of a node that they skip by a warning only: what it then computes is not defined.
        skipped = [warning for warning in warnings if warning.startswith(("Failed", "Skipping"))]
        if skipped or model.opset_imports[""] != step:
            return skipped[0] if skipped else f"no conversion to opset {step}"
    return ""


def lower_opset(model: ir.Model, opset: int) -> str:
    """Convert downwards in place; returns the first operator that forbids it, else an empty text."""
    current = model.opset_imports[""]
    for node in list(all_nodes(model)):
        if node.domain not in ("", "ai.onnx"):
            continue
        if is_standard(node, "Swish") and opset < 24:
            _lower_swish(node)
        elif not _means_the_same(node, current, opset):
            return f"{node.op_type} of {node.name or node.outputs[0].name} is another operator in opset {opset}"
    model.opset_imports[""] = opset
    for node in all_nodes(model):
        node.version = opset if node.domain == "" else node.version
    return ""


def _means_the_same(node: ir.Node, current: int, opset: int) -> bool:
    """Whether the lower opset has the operator with the attributes of this node, and with the same defaults.

    Does not count the inputs: too many of them make the converted model invalid, which onnx's checker tells.
    """
    try:
        old, new = (onnx.defs.get_schema(node.op_type, version, "") for version in (current, opset))
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    # An attribute that the lower opset lacks has a default that means what the operator did without it.
    defaults = (
        new.attributes[name].default_value == attribute.default_value
        for name, attribute in old.attributes.items()
        if name not in node.attributes and name in new.attributes
    )
    return all(name in new.attributes for name in node.attributes) and all(defaults)


def _lower_swish(node: ir.Node) -> None:
    """Swish(x) -> x * Sigmoid(alpha * x)."""
    x, alpha = node.inputs[0], node.attributes.get_float("alpha", 1.0)
    assert x is not None
    assert x.dtype is not None
    assert isinstance(node.graph, ir.Graph)
    tape = ir.tape.Tape(graph_like=node.graph)
    argument = x
    if alpha != 1.0:
        factor = ir.tensor([alpha], x.dtype, name=f"{node.outputs[0].name}_alpha")
        argument = tape.op("Mul", [x, tape.initializer(factor)])
    output = tape.op("Mul", [x, tape.op("Sigmoid", [argument])])
    producer = output.producer()
    assert producer is not None
    copy_names(node, producer)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [], node.outputs, [output])


@contextlib.contextmanager
def _warnings_of(*names: str) -> Iterator[list[str]]:
    """Collect the log messages of these loggers instead of showing them."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collect(logging.WARNING)
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield messages
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.level = propagate, level
