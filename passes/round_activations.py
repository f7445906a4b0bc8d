"""Rounds what linears with weights in groups read to 8 bits, at run time, so that their products are of integers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile import block_weights
from qcompile.block_functions import round_in_blocks, rounded_in_blocks
from qcompile.block_weights import BlockWeight
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import RecipeError
from qcompile.graph import is_standard, layer_name
from qcompile.layers import left_out

SIZES = (128, 64, 32, 16)
"""Channels that share a scale: those for which runtimes have kernels."""


@dataclasses.dataclass(frozen=True)
class RoundActivations(Pass):
    """MatMul(x, DequantizeLinear(W in groups)) -> MatMul(QuantizeDequantizePerBlock(x), DequantizeLinear(W in groups))

    One scale max|x| / 127 for each block of channels of a token: the largest of SIZES that divides the groups of the
    weight. Kernels for it take a third of the time of those for float activations, for one token. Does not fire on
    weights whose groups are divided by none of SIZES, on activations that are constant, quantized or vectors,
    and on layers that are ignored.

    Attributes:
        most: largest block, one of SIZES: a smaller one loses less.
        ignore: layers whose activations stay float, by name; bound by `compile`.
        operators: "Linear" where the backend has such products; bound by `compile`.

    Raises:
        RecipeError: `most` is none of SIZES.
    """

    most: int = SIZES[0]
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear"})

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "MatMul of an activation and a weight in groups"

    def __post_init__(self) -> None:
        if self.most not in SIZES:
            reason = f"there is no kernel for blocks of {self.most} channels"
            raise RecipeError("round_activations.most", reason, f"Give one of {', '.join(map(str, SIZES))}")

    @property
    def may_match_nothing(self) -> bool:
        """It follows up on the pass that stores the weights, and says the same layers."""
        return True

    def call(self, model: ir.Model) -> Result:
        """Round each activation once for every size of blocks that its linears want; say which stay float."""
        rounded: dict[tuple[ir.Value, int], ir.Value] = {}
        findings = []
        for node in list(model.graph):
            weight = block_weights.of_value(node.inputs[1]) if is_standard(node, "MatMul") else None
            x = node.inputs[0] if weight is not None else None
            if weight is None or x is None or rounded_in_blocks(x) is not None:
                continue
            size = self._block(weight)
            refusal = self._refusal(node, weight, x, size)
            if refusal is not None:
                findings.append(refusal)
                continue
            if (x, size) not in rounded:
                rounded[x, size] = round_in_blocks(model, x, size, node)
            node.replace_input_with(0, rounded[x, size])
        return Result(model, modified=bool(rounded), findings=tuple(findings))

    def _block(self, weight: BlockWeight) -> int:
        return next((size for size in SIZES if size <= self.most and weight.divides_into(size)), 0)

    def _refusal(self, node: ir.Node, weight: BlockWeight, x: ir.Value, size: int) -> Finding | None:
        """Why an activation stays float; that the layer is quantized says the pass that stores its weight."""
        told = Finding(layer_name(node), "explicit", operator="Linear")
        reason = ""
        if left_out(told, self.ignore, self.operators) is not None:
            reason = "the recipe leaves it out, or the backend has no such products"
        elif not size:
            reason = f"no block of {SIZES[-1]} or more channels divides its groups of {weight.block_size}"
        elif x.const_value is not None:
            reason = "what it reads is constant"
        elif is_standard(x.producer(), "DequantizeLinear"):
            reason = "what it reads is quantized already"
        elif x.shape is not None and len(x.shape) == 1:
            reason = "what it reads is a vector: runtimes have no such products of one"
        reason = f"its activations stay float: {reason}" if reason else ""
        return dataclasses.replace(told, operator="", reason=reason) if reason else None
