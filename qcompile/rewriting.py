"""Pattern rules of onnxscript's rewriter, run so that the names of the user's layers survive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RULE_NAME_TAG, MatchContext, RewriteRule, RewriteRuleSet

from qcompile.contract import Finding, Result
from qcompile.graph import all_nodes, constant_array, layer_name, unique_name
from qcompile.initializers import known_initializer


def apply_rules(model: ir.Model, rules: Sequence[RewriteRule], *, commute: bool = False) -> Result:
    """Apply the rules once to every node, and report each new node under the name of the layer that it replaces.

    A node that takes over an output takes over the name of the node that made it, with its metadata.

    Args:
        model: rewritten in place.
        rules: tried on each node in this order; the first that matches is applied.
        commute: try every order of the operands of commutative operators; costs 2**n tries for n operators, and
            onnxscript 0.7 cannot do it for patterns with OrValue.
    """
    names = {output.name: node.name for node in all_nodes(model) for output in node.outputs}
    before = set(all_nodes(model))
    count = RewriteRuleSet(rules, commute=commute).apply_to_model(model)
    findings = []
    for node in all_nodes(model):
        rule = node.metadata_props.pop(RULE_NAME_TAG, "")
        if node in before:
            continue
        inherited = names.get(node.outputs[0].name)
        if inherited:
            node.name = inherited
            findings.append(Finding(layer_name(node), "fused", rule))
    return Result(model, modified=bool(count), findings=tuple(findings))


def new_constant(op: Any, array: np.ndarray, like: ir.Value, suffix: str) -> ir.Value:
    """Constant of a replacement, named after a value of the graph; one of that name and content is read again.

    onnxscript 0.7 puts a new initializer in the place of another of its name, whose readers then have no value.
    """
    graph, name = like.graph, f"{like.name}_{suffix}"
    assert graph is not None
    known = known_initializer(graph, name, array)
    if known is not None:
        return known
    value: ir.Value = op.initializer(ir.tensor(array, name=unique_name(graph, name)))
    return value


def copy_names(source: ir.Node, target: ir.Node) -> None:
    """Give a node that replaces another its name, metadata and documentation."""
    target.name = source.name
    target.doc_string = source.doc_string
    target.metadata_props.update(source.metadata_props)


def merge_results(model: ir.Model, results: Sequence[Result]) -> Result:
    """One result for rules that were applied one after the other."""
    findings = tuple(finding for result in results for finding in result.findings)
    return Result(model, modified=any(result.modified for result in results), findings=findings)


def normalizes_last_axis(x: ir.Value, *axes: ir.Value) -> bool:
    """Whether each of the axes inputs of a reduction of x is the last axis alone, of known size."""
    if x.shape is None or not channels(x):
        return False
    arrays = [constant_array(axis) for axis in axes]
    return all(array is not None and array.tolist() in ([-1], [len(x.shape) - 1]) for array in arrays)


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    array = constant_array(value) if value is not None and value.const_value is not None else None
    return float(array.item()) if array is not None and array.size == 1 else None


def per_channel(value: ir.Value, channels: int) -> np.ndarray | None:
    """Constant that broadcasts along the last axis only, as an array [channels]; None for any other value."""
    if value.shape is None or any(dim != 1 for dim in value.shape[:-1]):
        return None
    if len(value.shape) and value.shape[-1] not in (1, channels):
        return None
    array = constant_array(value)
    return None if array is None else np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (channels,)))


def absorb_weight(norm: str) -> RewriteRule:
    """Rule norm(x, w) * c -> norm(x, w * c) for a norm over the last axis without bias, and c per channel."""

    def multiplied(op: Any, x: Any, weight: Any, factor: Any) -> Any:
        return op.Mul(getattr(op, norm)(x, weight, _allow_other_attributes=True, _outputs=["normalized"]), factor)

    def can_absorb(_: MatchContext, x: ir.Value, weight: ir.Value, factor: ir.Value, normalized: ir.Value) -> bool:
        return over_last_axis(normalized) and all(_is_per_channel_of(x, value) for value in (weight, factor))

    def absorbed(op: Any, x: ir.Value, weight: ir.Value, factor: ir.Value, normalized: ir.Value) -> Any:
        old, new = (per_channel(value, channels(x)) for value in (weight, factor))
        assert old is not None
        assert new is not None
        if bool((old == 1).all()) and factor.shape is not None and len(factor.shape) == 1:
            product = factor
        else:
            product = new_constant(op, old * new, normalized, "weight")
        return getattr(op, norm)(x, product, **attributes(normalized))

    return RewriteRule(multiplied, absorbed, can_absorb, name=norm)


def over_last_axis(normalized: ir.Value) -> bool:
    """Whether the norm that makes this value works over the last axis, of known size."""
    node = normalized.producer()
    x = node.inputs[0] if node is not None else None
    if node is None or x is None or x.shape is None or not channels(x):
        return False
    return node.attributes.get_int("axis", -1) in (-1, len(x.shape) - 1)


def _is_per_channel_of(x: ir.Value, value: ir.Value) -> bool:
    return value.dtype == x.dtype and per_channel(value, channels(x)) is not None


def channels(x: ir.Value) -> int:
    """Size of the last axis, 0 where it is not known."""
    last = x.shape[-1] if x.shape is not None and len(x.shape) else None
    return last if isinstance(last, int) else 0


def attributes(value: ir.Value) -> dict[str, ir.Attr]:
    """Attributes of the node that makes the value."""
    node = value.producer()
    assert node is not None
    return dict(node.attributes)
