"""RemoveNeutralOperators."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnxscript.rewriter.rules import common

from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules


@dataclasses.dataclass(frozen=True)
class RemoveNeutralOperators(Pass):
    """x * 1, x / 1, x + 0, x - 0, x[0:] -> x.

    A scale of 1 between a cosine and the rotary embedding that it is for hides the embedding, as a whole slice hides
    the mask of attention. The rules are onnxscript's; they need the number to be a constant without dims, and a slice
    to have constants of one element.
    """

    looks_for: ClassVar[str] = "x * 1, x / 1, x + 0, x - 0, or a slice of all of an axis"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        rules = [
            *common.mul_by_1_rule.commute(),
            *common.add_0_rule.commute(),
            common.div_by_1_rule,
            common.sub_0_rule,
            common.collapse_slice_rule,
        ]
        return apply_rules(model, rules)
