"""FuseAttention."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, RewriteRule, pattern

from qcompile.attention_parts import added_mask, is_mask, masked, scale, scaled
from qcompile.contract import Pass, Result
from qcompile.rewriting import apply_rules


@dataclasses.dataclass(frozen=True)
class FuseAttention(Pass):
    """softmax(scale * q @ k^T + mask) @ v -> Attention(q, k, v, mask, scale=scale).

    Vaswani et al., "Attention Is All You Need", equation 1. q is [batch, heads, queries, head_size], k and v
    [batch, heads, keys, head_size]. The scale may sit on q, on k, on the product or on several of them; the mask may be
    added, or fill positions with a constant (then it becomes an added one). The guard that torch puts around the
    softmax of a row that is wholly masked is dropped: Attention returns zeros for such a row by definition.

    Does not fire where the weights of the attention are read elsewhere, where the ranks or the numbers of heads are not
    known or differ (an implicit broadcast), for a computed scale, or for a softmax over another axis. Needs opset 23
    and operands in the order of computation (`order_operands`).
    """

    looks_for: ClassVar[str] = "softmax(q @ k^T) @ v of values with four axes"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        if model.opset_imports.get("", 0) < 23:
            return Result(model, modified=False)
        return apply_rules(model, [RewriteRule(_decomposed, _fused, _is_attention, name="Attention")])


def _transposed(op: Any, key: Any) -> Any:
    """Key with its last two axes swapped; also by way of three axes, as torch's exporter does it below opset 23."""
    flat = op.Reshape(key, pattern.ANY_VALUE, _allow_other_attributes=True, _outputs=["flat_key"])
    turned = op.Transpose(flat, perm=[0, 2, 1])
    ways = [
        op.Transpose(key, perm=[0, 1, 3, 2]),
        op.Reshape(turned, pattern.ANY_VALUE, _allow_other_attributes=True, _outputs=["turned_key"]),
        op.Transpose(key, perm=[0, 2, 3, 1]),
    ]
    return pattern.OrValue(ways, tag_var="key_layout", tag_values=["heads first", "heads flattened", "heads second"])


def _decomposed(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    filled: Any,
    query_scale: Any,
    key_scale: Any,
    score_scale: Any,
) -> Any:
    query = scaled(op, query, query_scale, "query_scaling")
    key = scaled(op, _transposed(op, key), key_scale, "key_scaling")
    score = scaled(op, op.MatMul(query, key), score_scale, "score_scaling")
    score = masked(op, score, mask, filled)
    weights = op.Softmax(score, _allow_other_attributes=True, _outputs=["weights"])
    guarded = pattern.OrValue([op.Where(op.IsNaN(weights), 0.0, weights), weights])
    return op.MatMul(guarded, value)


def _is_attention(
    _: MatchContext, query: ir.Value, key: ir.Value, value: ir.Value, key_layout: str, weights: ir.Value, **bound: Any
) -> bool:
    softmax = weights.producer()
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return False
    shapes = [each.shape for each in (query, key, value)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    queries, keys, values = (tuple(shape) for shape in shapes if shape is not None)
    if key_layout == "heads flattened" and not _swaps_last_axes(keys, bound["flat_key"], bound["turned_key"]):
        return False
    heads = {queries[1], values[1], keys[2 if key_layout == "heads second" else 1]}
    batches = {shape[0] for shape in (queries, keys, values) if isinstance(shape[0], int)}
    same_heads = len(heads) == 1 and isinstance(queries[1], int)
    return same_heads and len(batches) <= 1 and scale(queries[-1], bound) is not None and is_mask(bound)


def _swaps_last_axes(keys: tuple[Any, ...], flat: ir.Value, turned: ir.Value) -> bool:
    """Whether [batch, heads, keys, size] goes by way of [batch * heads, keys, size] to [batch, heads, size, keys].

    Reshapes to other sizes mix heads and keys, and give a value of four axes as well.
    """
    if (
        flat.shape is None
        or turned.shape is None
        or any(isinstance(d, ir.SymbolicDim) and d.value is None for d in keys)
    ):
        return False
    _, heads, count, size = keys
    return tuple(flat.shape[1:]) == (count, size) and tuple(turned.shape[1:]) == (heads, size, count)


def _fused(op: Any, query: ir.Value, key: ir.Value, value: ir.Value, key_layout: str, **bound: Any) -> Any:
    if key_layout == "heads second":
        key = op.Transpose(key, perm=[0, 2, 1, 3])
    assert query.shape is not None
    inputs = [query, key, value]
    if bound["masking"] != "none":
        inputs.append(added_mask(op, query, bound))
    return op.Attention(*inputs, scale=scale(query.shape[-1], bound))
