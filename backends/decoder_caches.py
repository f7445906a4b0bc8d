"""The cache of a decoder: inputs of the graph that attention reads as its past, and outputs with what is new."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from qcompile import graph
from qcompile.errors import UnsupportedError

PAST, PRESENT = (4, 5), (1, 2)
"""Inputs and outputs of Attention: old keys and values, and those with the new ones behind them."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys or values of one layer, [batch, heads, positions, size].

    Attributes:
        past: name of the input.
        present: name of the output.
    """

    past: str
    present: str


def find_caches(model: ir.Model) -> tuple[Cache, ...]:
    """Return each input that an Attention reads as its past, with the output that is its present, in graph order.

    Raises UnsupportedError where there is none, and where a layer has a past whose present is no output.
    """
    found: dict[str, Cache] = {}
    for node in model.graph:
        if not graph.is_standard(node, "Attention"):
            continue
        for read, written in zip(PAST, PRESENT, strict=True):
            past = node.inputs[read] if len(node.inputs) > read else None
            if past is None or not past.is_graph_input():
                continue
            present = node.outputs[written] if len(node.outputs) > written else None
            if present is None or not present.is_graph_output():
                reason = f"the input {past.name!r} is its past, and its present is no output"
                raise UnsupportedError(f"node {graph.layer_name(node)!r}", reason, "Export the model with its cache")
            found[str(past.name)] = Cache(str(past.name), str(present.name))
    if not found:
        reason = "no attention reads a cache that is an input and writes one that is an output"
        raise UnsupportedError(f"model {model.graph.name!r}", reason, "Give a decoder with its cache")
    return tuple(found.values())
