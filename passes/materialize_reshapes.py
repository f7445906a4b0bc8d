"""MaterializeReshapes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import constant, is_standard, layer_name
from qcompile.initializers import shared_initializer

_COPIED, _INFERRED = 0, -1
"""What Reshape takes for the size of its input at the same place, and for what is left."""


@dataclasses.dataclass(frozen=True)
class MaterializeReshapes(Pass):
    """Reshape(x, Concat(Shape(..), ..)) -> Reshape(x, constant), where the shapes of both sides say the same.

    torch's exporter computes every target from the sizes of an input: four nodes for each reshape of a decoder, which
    a runtime executes for each token. A dim that the input has at the same place is copied (0); among numbers one is
    inferred (-1). Does not fire where a shape is not known, where two dims are neither numbers nor copied, or where
    one is beside those that are copied: of an empty one, as a batch of nothing, none is inferred.
    """

    looks_for: ClassVar[str] = "Reshape to a computed target whose dims are those of its input, but for one"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place; what computed the target is left to those that remove unused nodes."""
        changed = [node for node in model.graph if _materialize(node, model.graph)]
        findings = tuple(Finding(layer_name(node), "converted", "constant target") for node in changed)
        return Result(model, modified=bool(changed), findings=findings)


def _materialize(node: ir.Node, graph: ir.Graph) -> bool:
    if not is_standard(node, "Reshape") or constant(node.inputs[1]) is not None:
        return False
    x, output = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or output.shape is None:
        return False
    target = [_size(axis, dim, x.shape) for axis, dim in enumerate(output.shape)]
    may_be_empty = _COPIED in target or 0 in x.shape
    if target.count(_INFERRED) > 1 or (_INFERRED in target and may_be_empty):
        return False
    name = f"reshape.{'_'.join('rest' if size == _INFERRED else str(size) for size in target)}"
    node.replace_input_with(1, shared_initializer(graph, name, np.array(target, np.int64)))
    node.attributes.pop("allowzero", None)
    return True


def _size(axis: int, dim: int | ir.SymbolicDim, source: ir.Shape) -> int:
    """What Reshape takes for a dim of the result; a number of 0 is none that it can be told without `allowzero`."""
    if isinstance(dim, int):
        return dim if dim > 0 else _INFERRED
    same = axis < len(source) and dim.value is not None and source[axis] == dim
    return _COPIED if same else _INFERRED
