"""OrderOperands."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Pass, Result
from qcompile.graph import constant, is_standard


@dataclasses.dataclass(frozen=True)
class OrderOperands(Pass):
    """Put the operands of Add and Mul in the order in which they are computed, constants last.

    In x * f(x) the x then always comes first, and in x * 0.5 the 0.5 second: later patterns need one order instead of
    2**n for n operators. Exact: addition and multiplication commute in floating point. Does not order two constants,
    nor two values that come from outside the graph.
    """

    looks_for: ClassVar[str] = "Add or Mul whose operands are not in the order of computation"

    def call(self, model: ir.Model) -> Result:
        """Swap in place; the output and its name stay."""
        swapped = sum(_order(graph) for graph in model.graphs())
        return Result(model, modified=bool(swapped))


def _order(graph: ir.Graph) -> int:
    """Order the operands of one graph, not of its subgraphs; returns the number of nodes changed."""
    computed_at: dict[ir.Value, int] = {}
    swapped = 0
    for position, node in enumerate(graph, start=1):
        if is_standard(node, "Add", "Mul"):
            first, second = node.inputs
            if first is not None and second is not None and _rank(first, computed_at) > _rank(second, computed_at):
                node.replace_input_with(0, second)
                node.replace_input_with(1, first)
                swapped += 1
        computed_at.update(dict.fromkeys(node.outputs, position))
    return swapped


def _rank(value: ir.Value, computed_at: dict[ir.Value, int]) -> float:
    """Position of the node that computes the value; 0 for an input, infinity for a constant."""
    return float("inf") if constant(value) is not None else computed_at.get(value, 0)
