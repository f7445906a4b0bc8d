"""Names of the layers of a torch module, by the parameters that they take; not by the values of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch
import torch.export
import torch.fx

from qcompile.graph import NAME_SCOPES, layer_name, name_scopes

_MADE_BY = "pkg.onnxscript.rewriter.rule_name"
"""Where onnxscript says which of its rules made a node."""


def name_layers(traced: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Call each layer by the module that has its weight, where the exporter recorded another one.

    It records the module whose code runs: for what it fused that of the norm behind the layer, and for the `out_proj`
    of nn.MultiheadAttention, which is never called, the attention. Initializers do not tell: the exporter stores equal
    parameters, such as those of deep copies, once, under the name of the first. So the name is that of the parameter in
    torch's own graph. A layer that takes a weight of a module elsewhere keeps its name; so does one that shares it
    with another kind of operation, as a head does that is tied to embeddings.

    Args:
        traced: its nodes are changed.
        program: that it was made from.
    """
    signature, tensors = program.graph_signature, program.state_dict
    given = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    traced_nodes = {node.name: node for node in program.graph.nodes}
    for node in traced.graph:
        scopes = name_scopes(node)
        source = traced_nodes.get(str(scopes[-1])) if scopes else None
        if source is None:
            continue
        fused = _MADE_BY in node.metadata_props
        weight = _fused_weight(node, source, given, tensors) if fused else _own_weight(source, given)
        owner = _owner(weight, layer_name(node) if any(scopes[:-1]) else "", tensors, fused) if weight else ""
        if owner:
            node.metadata_props[NAME_SCOPES] = str(["", owner, str(node.outputs[0].name)])


def _own_weight(source: torch.fx.Node, given: Mapping[str, str]) -> str:
    """Name of the first parameter that a traced node takes; empty where another kind of operation takes it too."""
    for argument in source.all_input_nodes:
        if argument.name in given:
            return given[argument.name] if len({user.target for user in argument.users}) == 1 else ""
    return ""


def _fused_weight(
    node: ir.Node, source: torch.fx.Node, given: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> str:
    """Name of the parameter that a node has as its initializer, by itself or by an equal one; empty where it has none.

    The node is traced as the last of what it was fused from: the layer is that, or what that takes.
    """
    stored = next((str(value.name) for value in node.inputs if value is not None and str(value.name) in tensors), "")
    for candidate in (source, *source.all_input_nodes[:1]) if stored else ():
        for argument in candidate.all_input_nodes:
            name = given.get(argument.name, "")
            if name in tensors and torch.equal(tensors[name], tensors[stored]):
                return name
    return stored


def _owner(weight: str, recorded: str, tensors: Mapping[str, torch.Tensor], fused: bool) -> str:
    """Name of the module to call a layer by; empty where the recorded one has the weight, or neither does."""
    owners = [name.rpartition(".")[0] for name in _names_of(weight, tensors)]
    if recorded in owners:
        return ""
    inside = [owner for owner in owners if not recorded or owner.startswith(f"{recorded}.")]
    return inside[0] if inside else weight.rpartition(".")[0] if fused else ""


def _names_of(weight: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """All names of a parameter: modules may share one."""
    yield weight
    if weight in tensors:
        shared = tensors[weight]
        yield from (name for name, other in tensors.items() if other is shared or _same_memory(other, shared))


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() != 0 and one.shape == other.shape
