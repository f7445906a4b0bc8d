"""Where a graph decides: floats that it compares, ranks, rounds or counts, of which a tie makes another answer.

A decision can be held against a runtime only if it is computed from the runtime's own floats. So these have to be
seen; what follows from them without arithmetic that rounds is then known exactly. Independent of everything that
compiles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

_JUMPS = frozenset({"Ceil", "Floor", "Hardmax", "Mod", "NonZero", "Round", "Shrink", "Sign", "ThresholdedRelu"})
"""Operators that make another number of a tie, which a step of rounding more or less may be."""

_PLACES = {"ArgMax": 0, "ArgMin": 0, "NonMaxSuppression": 0, "TopK": 1}
"""Operators that say where a number is, and in which output: a tie makes another one."""

_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

_CASTS = frozenset({"Cast", "CastLike"})

_MOVES = """
    Abs Clip Concat Constant ConstantOfShape DepthToSpace DequantizeLinear Expand EyeLike Flatten Gather GatherElements
    GatherND GlobalMaxPool Identity IsInf IsNaN Max MaxPool Min Neg OneHot Pad ReduceMax ReduceMin Relu Reshape Slice
    SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Where
"""
_EXACT = frozenset(_MOVES.split()) | _JUMPS | _PLACES.keys() | _COMPARISONS | _CASTS
"""Operators that compute the same of the same numbers in every runtime: they move, choose or decide."""


_WIDE = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def loose_decisions(model: ir.Model, seen: Collection[str]) -> tuple[ir.Value, ...]:
    """Return the floats of the main graph that it decides on and that are not known exactly, in the order of the graph.

    Args:
        model: with types of values, in topological order; what is in bodies of If and Loop is not looked at.
        seen: names of values whose numbers in the runtime are known, besides inputs and weights.
    """
    known = exact_values(model, seen) | {value for node in model.graph for value in node.outputs if value.name in seen}
    found = (value for node in model.graph for value in _decided_on(node) if value not in known)
    return tuple(dict.fromkeys(found))


def decisions_to_see(model: ir.Model, seen: Collection[str]) -> tuple[ir.Value, ...]:
    """Return the floats of the main graph that have to be seen besides, in its order, so that no decision is loose.

    What follows from one of them without rounding is none of them. In time proportional to the nodes.
    """
    return _followed(model, seen, {value for node in model.graph for value in _decided_on(node)})[1]


def exact_values(model: ir.Model, seen: Collection[str]) -> frozenset[ir.Value]:
    """Return the values of the main graph that follow from inputs, weights and what is seen without any rounding."""
    return _followed(model, seen, frozenset())[0]


def _followed(
    model: ir.Model, seen: Collection[str], wanted: Collection[ir.Value]
) -> tuple[frozenset[ir.Value], tuple[ir.Value, ...]]:
    """Return what follows exactly, and what of `wanted` does not and is taken for seen from there on."""
    exact = {*model.graph.inputs, *model.graph.initializers.values()}
    known, found = set(exact), list[ir.Value]()
    for node in model.graph:
        of_floats = any(_may_be_float(value) for value in (*node.inputs, *node.outputs) if value is not None)
        keeps = not _bodies(node) and not _narrows(node) and (not of_floats or node.op_type in _EXACT)
        follows = keeps and all(value in known for value in node.inputs if value is not None)
        if follows or node.op_type in ("Shape", "Size"):
            exact.update(node.outputs)
        known.update(value for value in node.outputs if value in exact or value.name in seen)
        loose = [value for value in node.outputs if value in wanted and value not in known]
        known.update(loose)
        found += loose
    return frozenset(exact), tuple(found)


def unseen_jump(model: ir.Model, seen: Collection[str]) -> str | None:
    """Return why other numbers than those of the runtime may follow: a tie that nobody sees, whose answer is used.

    Comparisons are no reason: what one makes of a tie is an answer for itself, or chooses between numbers.
    """
    loose = set(loose_decisions(model, seen))
    for node in model.graph:
        if loose.intersection(_decided_on(node)) and (reason := jump(node)) is not None:
            return f"{reason}, and the runtime does not show what it reads"
    return None


def jump(node: ir.Node) -> str | None:
    """Return the reason where a tie in what the node reads makes another number of what others read of it."""
    if not _reads_floats(node):
        return None
    if node.op_type in _CASTS and not _writes_floats(node):
        return "a Cast to integers makes another number of a tie"
    if node.op_type in _JUMPS:
        return f"{node.op_type} makes another number of a tie"
    place = _PLACES.get(node.op_type)
    if place is not None and place < len(node.outputs) and node.outputs[place].uses():
        return f"{node.op_type} finds another place in a tie, and the place is used"
    return None


def behind_jumps(model: ir.Model, sources: Collection[ir.Value]) -> frozenset[ir.Value]:
    """Return what depends on an answer to a tie in numbers that depend on these values."""
    reached, behind = set(sources), set[ir.Value]()
    for node in model.graph:
        read = set(_read(node))
        if reached & read:
            reached.update(node.outputs)
        if behind & read or (jump(node) is not None and reached & read):
            behind.update(node.outputs)
    return frozenset(behind)


def _decided_on(node: ir.Node) -> list[ir.Value]:
    """Return the floats that a node decides on; of a Cast to the type of another value, not that one."""
    decides = node.op_type in _JUMPS | _PLACES.keys() | _COMPARISONS
    if not decides and (node.op_type not in _CASTS or _writes_floats(node)):
        return []
    read = node.inputs[:1] if node.op_type in _CASTS else node.inputs
    return [value for value in read if value is not None and value.dtype is not None and _may_be_float(value)]


def _narrows(node: ir.Node) -> bool:
    """True for a Cast that rounds to another float, which runtimes may leave out."""
    kinds = {value.dtype for value in node.outputs}
    return node.op_type in _CASTS and not kinds <= _WIDE and any(map(_may_be_float, node.outputs))


def _reads_floats(node: ir.Node) -> bool:
    source = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    return source is not None and source.is_floating_point()


def _writes_floats(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to")).is_floating_point()
    like = node.inputs[1].dtype if node.inputs[1] is not None else None
    return like is None or like.is_floating_point()


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [item.as_graph() for item in node.attributes.values() if item.type == ir.AttributeType.GRAPH]


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, also inside of its bodies."""
    nodes = [node, *(inner for body in _bodies(node) for inner in body.all_nodes())]
    yield from (value for each in nodes for value in each.inputs if value is not None)
    yield from (value for body in _bodies(node) for value in body.outputs)
