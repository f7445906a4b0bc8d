"""Where a rewrite went wrong: the first value, in the order of the graph, that two models compute differently."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.calibration_masks import PaddingMask
from qcompile.errors import InputError, ModelError
from qcompile.graph import bodies
from qcompile.outputs import without_padding
from qcompile.session import Feed, OpenSession
from qcompile.verify import EXACT_TOLERANCE, difference, outputs_of

_VALUES = 32
"""Values that are looked at in one run: all of them at once may be many times the memory of a run."""


def first_difference(
    before: ir.Model,
    after: ir.Model,
    samples: Sequence[Feed],
    masks: Sequence[PaddingMask],
    open_session: OpenSession,
) -> str | None:
    """Return the name of the first value of both main graphs that differs, and leads to an output that differs.

    A rewrite may well change a value and make up for it behind: a scale that is folded. So values are followed
    upstream from the outputs that differ, and no further than to one that is as it was.

    Args:
        before: the model as it should compute; it is not changed.
        after: the model that computes something else, with some values of the same names; it is not changed.
        samples: inputs; padded positions of them do not count.
        masks: inputs that mark padding.
        open_session: the runtime in which both run.

    Returns:
        None where no value differs by more than EXACT_TOLERANCE of its range, or the runtime refuses to show them.
    """
    shown = [ShapeInferencePass(strict_mode=False)(model.clone()).model for model in (before, after)]
    names = _common(*shown)
    differing: set[str] = set()
    try:
        for start in range(0, len(names), _VALUES):
            some = names[start : start + _VALUES]
            sides = [outputs_of(_with_outputs(model, some), samples, open_session) for model in shown]
            expected, actual = (without_padding(side, samples, masks) for side in sides)
            for name in some:
                one = difference(*([{name: found[name]} for found in side] for side in (expected, actual)))
                differing.update([name] if one.relative > EXACT_TOLERANCE else [])
    except (InputError, ModelError):
        return None  # both models run: what is known of their outputs is said without this
    leading = _leading(shown[1], differing, frozenset(names) - differing)
    return next((name for name in names if name in leading), None)


def _common(before: ir.Model, after: ir.Model) -> list[str]:
    """Return the names of tensors of one type that nodes of both main graphs make, in the order of the second."""
    types = {str(value.name): value.dtype for node in before.graph for value in node.outputs if value.dtype is not None}
    after.graph.sort()
    made = [value for node in after.graph for value in node.outputs if value.name]
    return [str(value.name) for value in made if value.dtype is not None and types.get(str(value.name)) == value.dtype]


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of the model whose outputs are these values."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def _leading(model: ir.Model, differing: set[str], agreeing: frozenset[str]) -> set[str]:
    """Return what differs and leads to an output that does, on a way on which nothing agrees."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    upstream = [value for value in model.graph.outputs if value.name in differing]
    while upstream:
        value = upstream.pop()
        if value in seen or value.name in agreeing:
            continue
        seen.add(value)
        found.update({str(value.name)} & differing)
        node = value.producer()
        if node is not None:
            upstream.extend(_read(node))
    return found


def _read(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, also inside of its branches."""
    nodes = [node, *(inner for body in bodies(node) for inner in body.all_nodes())]
    return [value for each in nodes for value in each.inputs if value is not None]
