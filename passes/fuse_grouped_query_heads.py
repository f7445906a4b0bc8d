"""FuseGroupedQueryHeads."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, RewriteRule, pattern

from qcompile.contract import Pass, Result
from qcompile.graph import constant_array
from qcompile.rewriting import apply_rules, attributes


@dataclasses.dataclass(frozen=True)
class FuseGroupedQueryHeads(Pass):
    """Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v) with fewer heads in k and v.

    Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", section 2.2. The repeat is Unsqueeze,
    Expand and Reshape of [batch, kv_heads, keys, head_size] to [batch, kv_heads * groups, keys, head_size]; Attention
    repeats each head in the same order by itself. Does not fire where k and v are repeated differently or the numbers
    of heads are not known.
    """

    looks_for: ClassVar[str] = "Attention whose key and value are repeated by Unsqueeze, Expand and Reshape"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        return apply_rules(model, [RewriteRule(_repeated, _grouped, _is_repeat, name="Attention")])


def _repeat(op: Any, value: Any, axes: Any, name: str) -> Any:
    """[batch, heads, keys, size] -> [batch, heads, groups, keys, size] -> [batch, heads * groups, keys, size]."""
    expanded = op.Expand(op.Unsqueeze(value, axes), pattern.ANY_VALUE, _outputs=[f"expanded_{name}"])
    return op.Reshape(expanded, pattern.ANY_VALUE, _allow_other_attributes=True, _outputs=[f"repeated_{name}"])


def _repeated(op: Any, query: Any, key: Any, value: Any, key_axes: Any, value_axes: Any) -> Any:
    return op.Attention(
        query,
        _repeat(op, key, key_axes, "key"),
        _repeat(op, value, value_axes, "value"),
        _allow_other_inputs=True,
        _allow_other_attributes=True,
        _outputs=["attended"],
    )


def _is_repeat(
    _: MatchContext, query: ir.Value, key_axes: ir.Value, value_axes: ir.Value, attended: ir.Value, **bound: Any
) -> bool:
    axes = [constant_array(value) for value in (key_axes, value_axes)]
    if any(axis is None or axis.tolist() not in ([2], [-3]) for axis in axes):
        return False
    groups = [_groups(bound[name], bound[f"expanded_{name}"], bound[f"repeated_{name}"]) for name in ("key", "value")]
    node = attended.producer()
    has_cache = node is not None and len(node.inputs) > 4
    return groups[0] is not None and groups[0] == groups[1] and not has_cache and query.shape is not None


def _groups(value: ir.Value, expanded: ir.Value, repeated: ir.Value) -> int | None:
    """How often each head is repeated; None where the shapes do not say that this is a repeat of heads."""
    if value.shape is None or expanded.shape is None or repeated.shape is None:
        return None
    if (len(value.shape), len(expanded.shape), len(repeated.shape)) != (4, 5, 4):
        return None
    heads, groups, total = value.shape[1], expanded.shape[2], repeated.shape[1]
    if not (isinstance(heads, int) and isinstance(groups, int) and total == heads * groups):
        return None
    return groups if expanded.shape[1] == heads and expanded.shape[4] == value.shape[3] else None


def _grouped(op: Any, query: ir.Value, key: ir.Value, value: ir.Value, attended: ir.Value, **_: Any) -> Any:
    node = attended.producer()
    assert node is not None
    return op.Attention(query, key, value, *node.inputs[3:], **attributes(attended))
