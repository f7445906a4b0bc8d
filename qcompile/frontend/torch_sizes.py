"""Names of dynamic sizes: those that broadcast together are one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import networkx
import onnx_ir as ir

from qcompile.graph import is_standard

_ELEMENTWISE = ("Add", "And", "Div", "Mul", "Or", "Pow", "Sub", "Where")
_MASK = 3


def unify_sizes(model: ir.Model) -> None:
    """Give sizes that broadcast with each other one name, that of the earliest graph input with one of them.

    torch.export gives ids and their mask a batch of their own each, because attention does not compare the two. It
    takes no dynamic size for 1 (0/1 specialization), so that two which broadcast are equal. Without it nothing shows
    that the mask belongs to the positions of the model's activations.

    Does not look into functions and subgraphs, nor at sizes that are computed of others.
    """
    pairs = networkx.Graph()
    for node in model.graph:
        for dims in _aligned(node):
            pairs.add_edges_from(itertools.pairwise(dict.fromkeys(name for dim in dims if (name := _name(dim)))))
    order = list(dict.fromkeys(name for value in model.graph.inputs for dim in value.shape or () if (name := _name(dim))))
    renamed: dict[str, str] = {}
    for component in networkx.connected_components(pairs):
        known = sorted(component & set(order), key=order.index) or sorted(component)
        renamed.update((name, known[0]) for name in component if name != known[0])
    if renamed:
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, renamed))})\b")
        for value in _values(model.graph):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, pattern, renamed) for dim in value.shape])


def _aligned(node: ir.Node) -> Iterator[Sequence[int | ir.SymbolicDim]]:
    """Dims of the node's inputs that broadcast with each other."""
    shapes = [value.shape for value in node.inputs if value is not None and value.shape is not None]
    if is_standard(node, *_ELEMENTWISE):
        yield from _from_the_right(shapes)
    elif is_standard(node, "MatMul"):
        yield from _from_the_right([shape[:-2] for shape in shapes])
    elif is_standard(node, "Attention") and len(shapes) == len(node.inputs) == _MASK + 1:
        # Scores [batch, heads, queries, keys], of inputs with separate heads; flat ones are [batch, sequence, features].
        query, key, _, mask = shapes
        yield from _from_the_right([(query[0], 1, query[-2], key[-2]), mask])


def _from_the_right(shapes: Sequence[Sequence[int | ir.SymbolicDim]]) -> Iterator[Sequence[int | ir.SymbolicDim]]:
    return itertools.zip_longest(*(tuple(shape)[::-1] for shape in shapes), fillvalue=1)


def _name(dim: int | ir.SymbolicDim) -> str | None:
    """Name of a size of its own; None for a number, for an unknown one and for an expression."""
    value = None if isinstance(dim, int) else dim.value
    return value if value is not None and value.isidentifier() else None


def _renamed(
    dim: int | ir.SymbolicDim, pattern: re.Pattern[str], renamed: dict[str, str]
) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    return ir.SymbolicDim(pattern.sub(lambda match: renamed[match.group()], dim.value))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
