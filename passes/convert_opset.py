"""ConvertOpset."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import ClassVar

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import version_converter

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, is_standard
from qcompile.rewriting import copy_names

_LIBRARY_FROM = 18
"""Lowest opset of onnxscript's converter; what is older goes through onnx's own converter first."""

_QUANTIZED_FROM = 21
"""Lowest opset that quantized models are written in."""

_IR_VERSION = 10
"""Lowest version of the format that goes with opset 21 and later, and that every supported runtime reads."""


@dataclasses.dataclass(frozen=True)
class ConvertOpset(Pass):
    """Bring the operators of the standard domain to one opset.

    Upwards by onnx's converter to 18 and onnxscript's from there; downwards where every operator has the same
    definition in both opsets, with Swish, new in 24, written as x * sigmoid(alpha * x). A model that cannot be
    converted as a whole is raised to 21 at least, or else stays as it is; the finding says why. Needs functions
    inlined and constants as initializers.

    Attributes:
        opset: the opset to reach.
        runs: tells whether the reference runtime takes a model: it may lack an operator's version in the new opset. A
            conversion that it does not take, of a model that it does, is not made. None: not asked.
    """

    opset: int = 23
    runs: Callable[[ir.Model], bool] | None = dataclasses.field(default=None, repr=False, compare=False)
    looks_for: ClassVar[str] = "operators of another opset"

    def call(self, model: ir.Model) -> Result:
        """Convert a copy and take over its graph, so that a failure leaves the model untouched."""
        current = model.opset_imports.get("")
        if current is None or current == self.opset:
            return Result(model, modified=False)
        refusals: list[str] = []
        for opset in (self.opset, _QUANTIZED_FROM) if current < _QUANTIZED_FROM < self.opset else (self.opset,):
            converted = model.clone()
            refusal = _raise(converted, opset) if current < opset else _lower(converted, opset)
            refusal = refusal or _invalid(converted)
            if not refusal and self.runs is not None and not self.runs(converted) and self.runs(model):
                refusal = f"the runtime refuses it in opset {opset}"
            if not refusal:
                return _taken_over(model, converted, "; ".join([f"opset {current} to {opset}", *refusals]))
            refusals.append(refusal)
        finding = Finding(model.graph.name or "model", "kept", f"stays at opset {current}: {'; '.join(refusals)}")
        return Result(model, modified=False, findings=(finding,))


def _taken_over(model: ir.Model, converted: ir.Model, reason: str) -> Result:
    """Give the model the converted graph, under the names that its nodes had."""
    _restore_names(model, converted)
    model.graph = converted.graph
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return Result(model, modified=True, findings=(Finding(model.graph.name or "model", "converted", reason),))


def _raise(model: ir.Model, opset: int) -> str:
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


def _lower(model: ir.Model, opset: int) -> str:
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
    """Whether the lower opset has the operator with all that this node uses, and with the same defaults."""
    try:
        old, new = (onnx.defs.get_schema(node.op_type, version, "") for version in (current, opset))
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    used = [index for index, value in enumerate(node.inputs) if value is not None]
    variadic = bool(new.inputs) and new.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    if used and used[-1] >= len(new.inputs) and not variadic:
        return False
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


def _invalid(model: ir.Model) -> str:
    """What onnx's checker says against the converted model, types and shapes included; empty where it is valid."""
    try:
        common_passes.CheckerPass(full_check=True)(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def _restore_names(model: ir.Model, converted: ir.Model) -> None:
    """Put back the names and metadata of nodes, which onnx's converter drops, by the names of their outputs."""
    originals = {output.name: node for node in all_nodes(model) for output in node.outputs}
    names = {node.name for node in all_nodes(model)}
    for node in all_nodes(converted):
        original = originals.get(node.outputs[0].name) if node.outputs else None
        if original is not None:
            copy_names(original, node)
        elif node.name in names:
            node.name = None  # A helper that took the name of the node whose output another node now makes.
    common_passes.NameFixPass()(converted)


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
