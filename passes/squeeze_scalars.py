"""SqueezeScalars."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Pass, Result
from qcompile.graph import all_nodes, constant, is_standard
from qcompile.initializers import derive_initializer


@dataclasses.dataclass(frozen=True)
class SqueezeScalars(Pass):
    """A constant [[[c]]] in elementwise arithmetic -> the scalar c, as the patterns of later passes expect it.

    Exporters of TensorFlow and JAX write scalars with axes of 1. Does not fire where the axes may add one to the
    result: the other operand must be known to have as many.
    """

    looks_for: ClassVar[str] = "Add, Sub, Mul, Div or Pow with a constant of one element and axes of 1"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        squeezed = 0
        for node in all_nodes(model):
            if not is_standard(node, "Add", "Sub", "Mul", "Div", "Pow"):
                continue
            for value, other in zip(node.inputs, reversed(node.inputs), strict=True):
                if value is None or other is None or not _can_squeeze(value, other):
                    continue
                name = f"{node.outputs[0].name}_scalar"
                scalar = derive_initializer(value, name, (), lambda array: array.reshape(()))
                node.replace_input_with(node.inputs.index(value), scalar)
                squeezed += 1
        return Result(model, modified=bool(squeezed))


def _can_squeeze(value: ir.Value, other: ir.Value) -> bool:
    tensor = constant(value)
    if tensor is None or constant(other) is not None or other.shape is None:
        return False
    rank = len(tensor.shape)
    return 0 < rank <= len(other.shape) and math.prod(tensor.shape.numpy()) == 1
