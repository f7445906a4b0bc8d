"""Why a pass that was asked for found nothing in a model."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from qcompile.contract import Pass
from qcompile.errors import NothingMatchedError
from qcompile.graph import constant
from qcompile.layers import embeddings
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.unlisted import unlisted
from qcompile.untouched import other_types

USE_FLOAT32 = "Give the model in float32: module.float() for a torch module, or export the .onnx file in float32"
"""What mends a model whose weights have a type that no pass quantizes."""

_STORE_TABLES = (
    "quantize_embeddings stores its tables of embeddings in 8 bits: use w8a8-dynamic, which needs no calibration data "
    "for them, or add that pass to the recipe"
)

_LAYERS = ("Conv", "ConvTranspose", "Linear")

_REMOVE_FROM_INPUTS = (
    "Nobody overrides them? Then remove them from the inputs: model = onnx_ir.load(path); "
    "onnx_ir.passes.common.RemoveInitializersFromInputsPass()(model); and compile that"
)


def nothing_matched(model: ir.Model, name: str, item: ir.passes.PassBase) -> NothingMatchedError:
    """Return the error for a pass of this name: what it looks for, what there is, and what hides it.

    The settings that the name may have in brackets are left out of the error: they do not say what is found.
    """
    operators = Counter(node.op_type for node in model.graph).most_common(5)
    found = ", ".join(f"{count} {name}" for name, count in operators) or "no nodes"
    sought = item.looks_for if isinstance(item, Pass) else "its pattern"
    reason = f"it matched nothing: it looks for {sought} and found {found}"
    subject, overridable = f"pass {name.partition('(')[0]}", _weights_among_inputs(model)
    if overridable:
        are = "1 weight is also an input" if overridable == 1 else f"{overridable} weights are also inputs"
        reason += f"; {are} of the graph, which may be overridden, so it is no constant"
        return NothingMatchedError(subject, reason, _REMOVE_FROM_INPUTS)
    others = other_types(model)
    if others:
        return NothingMatchedError(subject, f"{reason}; the weights are {' and '.join(others)}", USE_FLOAT32)
    unable = [found for found in unlisted(model, ()) if found.operator not in ("Embedding", *_LAYERS)]
    if unable:
        held = " and ".join(f"{count} {name}" for name, count in Counter(each.operator for each in unable).items())
        reason = f"{reason}; the weights are those of {held}, which no pass quantizes"
        return NothingMatchedError(subject, reason, "Use recipe float, which compiles the model as it is")
    if _tables(model):
        return NothingMatchedError(subject, reason, _STORE_TABLES)
    return NothingMatchedError(subject, reason, "Take it out of the recipe, or check the model")


def _tables(model: ir.Model) -> bool:
    """True for a model with a table of embeddings that is worth storing in 8 bits."""
    tables = [constant(table) for table in embeddings(model) if table.dtype == ir.DataType.FLOAT]
    smallest = QuantizeEmbeddings().min_elements
    return any(table is not None and table.size >= smallest for table in tables)


def _weights_among_inputs(model: ir.Model) -> int:
    """How many matrices with a value are inputs too: exporters of before 2019 (IR 3) had to list them there."""
    return sum(
        value.is_graph_input() and value.shape is not None and len(value.shape) > 1
        for value in model.graph.initializers.values()
    )
