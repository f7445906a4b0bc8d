"""Inputs of a model that are indices, such as token ids, and how large a number they may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from qcompile.graph import is_standard, layer_name

_KEEP_NUMBERS = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")
"""Operators whose first input keeps its numbers, in whatever shape."""


@dataclasses.dataclass(frozen=True)
class IndexLimit:
    """What an index may be: -size to size - 1, as Gather counts.

    Attributes:
        size: length of the axis that is indexed.
        node: name of the layer that takes the index.
    """

    size: int
    node: str


def index_limits(inputs: Sequence[ir.Value]) -> dict[str, IndexLimit]:
    """Return the smallest limit of every input whose numbers go into a Gather as they are.

    Not of inputs that arithmetic changes on the way, and not where an If or Loop decides whether Gather runs.
    """
    found = {}
    for value in inputs:
        limits = list(_limits(value))
        if limits:
            found[str(value.name)] = min(limits, key=lambda limit: limit.size)
    return found


def _limits(value: ir.Value) -> Iterator[IndexLimit]:
    for node, place in value.uses():
        if node.graph is not value.graph:
            continue
        if place == 1 and is_standard(node, "Gather") and node.inputs[0] is not None:
            shape, axis = node.inputs[0].shape, node.attributes.get_int("axis", 0)
            size = shape[axis] if shape is not None else None
            if isinstance(size, int):
                yield IndexLimit(size, layer_name(node))
        elif place == 0 and is_standard(node, *_KEEP_NUMBERS):
            yield from _limits(node.outputs[0])
