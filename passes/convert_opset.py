"""ConvertOpset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes
from qcompile.opset_conversion import lower_opset, raise_opset
from qcompile.rewriting import copy_names

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
            refusal = raise_opset(converted, opset) if current < opset else lower_opset(converted, opset)
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
