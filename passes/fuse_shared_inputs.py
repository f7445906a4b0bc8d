"""Joins linears that read the same value into one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import Linear, constant
from qcompile.initializers import concatenated, new_initializer, remove_unused
from qcompile.layers import float_linears


@dataclasses.dataclass(frozen=True)
class FuseSharedInputs(Pass):
    """MatMul(x, A) + a, MatMul(x, B) + b  ->  Split(MatMul(x, [A B]) + [a b]): q,k,v; gate and up.

    One larger product keeps more of the processor busy, and its input is quantized once where a runtime quantizes it
    inside the operator. Does not fire on linears that are ignored, on those whose output is a graph output, where some
    have a bias and others none, where a weight is tied to another layer, and above `max_out_features` together: there
    each product is large enough by itself and the Split only copies.

    Attributes:
        max_out_features: most output features of the joined linear.
        ignore: layers that stay float, by name; bound by `compile`.
    """

    max_out_features: int = 4096
    ignore: frozenset[str] = frozenset()

    looks_for: ClassVar[str] = "linears that read the same value"

    @property
    def may_match_nothing(self) -> bool:
        """Joining is an optimization: a model whose linears share no input is fine as it is."""
        return True

    def call(self, model: ir.Model) -> Result:
        """Join what can be joined, in graph order."""
        groups: dict[tuple[ir.Value, bool], list[Linear]] = {}
        for linear in float_linears(model):
            groups.setdefault((linear.x, linear.bias is None), []).append(linear)
        findings: list[Finding] = []
        for candidates in groups.values():
            members = [member for member in candidates if self._can_join(member)]
            width = sum(int(constant_shape(member)[1]) for member in members)
            if len(members) > 1 and width <= self.max_out_features:
                findings += _join(members, width)
        return Result(model, modified=bool(findings), findings=tuple(findings))

    def _can_join(self, linear: Linear) -> bool:
        tied = len(linear.weight.uses()) > 1 or (linear.bias is not None and len(linear.bias.uses()) > 1)
        return linear.name not in self.ignore and not tied and not linear.output.is_graph_output()


def constant_shape(linear: Linear) -> tuple[int, int]:
    """[in_features, out_features] of the weight."""
    tensor = constant(linear.weight)
    assert tensor is not None
    rows, columns = tensor.shape.numpy()
    return int(rows), int(columns)


def _join(members: Sequence[Linear], width: int) -> list[Finding]:
    first = members[0]
    graph = first.matmul.graph
    assert isinstance(graph, ir.Graph)
    name = "+".join(member.name for member in members)
    product = ir.node("MatMul", [first.x, concatenated(graph, [m.weight for m in members], 1)], name=name)
    nodes, result = [product], product.outputs[0]
    _typed(result, f"{name}.matmul", first, width)
    if first.bias is not None:
        biases = [member.bias for member in members if member.bias is not None]
        nodes.append(ir.node("Add", [result, concatenated(graph, biases, 0)], name=f"{name}.bias"))
        result = nodes[-1].outputs[0]
        _typed(result, f"{name}.add", first, width)
    widths = new_initializer(graph, f"{name}.widths", np.array([constant_shape(m)[1] for m in members], np.int64))
    split = ir.node("Split", [result, widths], {"axis": -1}, num_outputs=len(members), name=f"{name}.split")
    old = [node for member in members for node in (member.matmul, member.add) if node is not None]
    ir.convenience.replace_nodes_and_values(
        graph, first.matmul, old, [*nodes, split], [member.output for member in members], split.outputs
    )
    remove_unused(value for m in members for value in (m.weight, m.bias) if value is not None)
    return [Finding(member.name, "fused", f"into {name}") for member in members]


def _typed(value: ir.Value, name: str, like: Linear, width: int) -> None:
    value.name, value.type = name, like.output.type
    value.shape = None if like.output.shape is None else ir.Shape([*like.output.shape[:-1], width])
