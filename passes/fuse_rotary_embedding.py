"""FuseRotaryEmbedding."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnxscript.rewriter.rules.fusion import _rotary_embedding

from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules, merge_results


@dataclasses.dataclass(frozen=True)
class FuseRotaryEmbedding(Pass):
    """x * cos + rotate_half(x) * sin -> RotaryEmbedding(x, cos, sin), whole or for the first part of each head.

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", equation 34, with the halves of a head
    as the pairs. The patterns are onnxscript's; they need the frequencies to be doubled by Concat inside the graph, x
    of [batch, heads, sequence, head_size] with known heads and size, and opset 23. Interleaved pairs do not fire.
    """

    looks_for: ClassVar[str] = "x * cos(f, f) + concat(-x[half:], x[:half]) * sin(f, f)"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place: whole heads first, then those that rotate in part."""
        if model.opset_imports.get("", 0) < 23:
            return Result(model, modified=False)
        whole = apply_rules(model, _rotary_embedding.rotary_embedding_rules.rules, commute=True)
        partial = apply_rules(model, _rotary_embedding.partial_embedding_rules.rules)
        return merge_results(model, [whole, partial])
