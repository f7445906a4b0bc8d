"""Which layers a recipe is about: what `ignore` and `targets` select, and whether anything is left to quantize."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

import onnx_ir as ir

from qcompile.cache_rounding import cache_inputs
from qcompile.errors import NothingMatchedError, RecipeError
from qcompile.graph import constant, is_standard, layer_name
from qcompile.layers import float_layers, node_of, operator
from qcompile.recipe import Recipe, named_recipes
from qcompile.recipe_patterns import check_patterns, selects
from qcompile.unlisted import unlisted
from qcompile.untouched import quantized_already

_SELECTED = ("Attention", "Conv", "ConvTranspose", "Gather", "MatMul")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A node that some pass may quantize.

    Attributes:
        name: by which passes know the layer; nodes may share it.
        aliases: all names by which a pattern may select it.
        operator: name of a backend's capabilities; empty where no pass quantizes it: a recurrent layer, or one whose
            weight is of another type.
    """

    name: str
    aliases: tuple[str, ...]
    operator: str


def ignored_layers(model: ir.Model, plan: Recipe) -> frozenset[str]:
    """Return the names of the layers that the patterns of the recipe leave float.

    Layers are linears, convolutions, embeddings, the products of attention, and what else has a weight, which stays
    float anyway. Passes know a layer by its name alone: where several nodes have one name, as those of a module that is
    called twice, a pattern that selects one of them by the name of its node selects all of them.

    Raises:
        RecipeError: a pattern selects nothing.
    """
    names = _aliases(model)
    check_patterns("ignore", plan.ignore, names.values())
    check_patterns("targets", plan.targets, names.values())
    return frozenset(
        name
        for name, aliases in names.items()
        if selects(plan.ignore, aliases) or (plan.targets and not selects(plan.targets, aliases))
    )


def check_selection(model: ir.Model, plan: Recipe, operators_of: Callable[[Recipe], frozenset[str]]) -> None:
    """Raise an error when the recipe is to quantize, and nothing that it quantizes is in the model or left by patterns.

    A model that is quantized already is left alone, and one without float32 layers is the passes' to refuse: they know
    the reason.

    Args:
        model: in canonical form.
        plan: the recipe.
        operators_of: what a recipe quantizes here.

    Raises:
        RecipeError: a pattern selects nothing, or the patterns leave nothing.
        NothingMatchedError: the model has layers, and none of them is of an operator that the recipe quantizes.
    """
    ignored, operators = ignored_layers(model, plan), operators_of(plan)
    if not operators or not float_layers(model) or quantized_already(model):
        return
    found = [candidate for candidate in _candidates(model) if candidate.operator]
    able = {candidate.name for candidate in found if candidate.operator in operators}
    if not able:
        raise _no_operator(plan, operators, found, operators_of)
    if able <= ignored:
        raise _nothing_left(model, plan, len(able))


def _no_operator(
    plan: Recipe,
    operators: frozenset[str],
    found: list[Candidate],
    operators_of: Callable[[Recipe], frozenset[str]],
) -> NothingMatchedError:
    has = Counter(candidate.operator for candidate in found)
    held = ", ".join(f"{count} {name}" for name, count in has.most_common())
    others = [name for name in named_recipes() if has.keys() & operators_of(Recipe.from_name(name))]
    mend = f"Use {' or '.join(others[:2])}" if others else "Use recipe float: no recipe quantizes these here"
    reason = f"it quantizes {' and '.join(sorted(operators))}, and the model has none of them but {held}"
    return NothingMatchedError(f"recipe {plan.name}", reason, mend)


def _nothing_left(model: ir.Model, plan: Recipe, count: int) -> RecipeError:
    both = [
        name for name, names in _aliases(model).items() if selects(plan.ignore, names) and selects(plan.targets, names)
    ]
    given = [field for field in ("ignore", "targets") if getattr(plan, field)]
    reason = f"{'together they leave' if len(given) > 1 else 'it leaves'} nothing of {count} layers to quantize"
    if both:
        reason += f"; both select {', '.join(both[:3])}{' and others' if len(both) > 3 else ''}"
    return RecipeError(" and ".join(given), reason, "Leave a layer to quantize, or use recipe float")


def _aliases(model: ir.Model) -> dict[str, list[str]]:
    """Return the name of each layer, with all names by which a pattern may select it."""
    names: dict[str, list[str]] = {}
    for candidate in _candidates(model):
        names.setdefault(candidate.name, []).extend(candidate.aliases)
    return names


def _candidates(model: ir.Model) -> Iterator[Candidate]:
    """Yield what a pass may quantize; an embedding has the name of the first Gather that reads its table."""
    layers = {node_of(layer): operator(layer) for layer in float_layers(model)}
    tables: dict[ir.Value, str] = {}
    for node in model.graph:
        name = layer_name(node)
        aliases = (name, str(node.name))
        if is_standard(node, "Gather") and node.inputs[0] is not None:
            if constant(node.inputs[0]) is None or node.inputs[0].dtype != ir.DataType.FLOAT:
                continue
            yield Candidate(tables.setdefault(node.inputs[0], name), aliases, "Embedding")
        elif is_standard(node, "Attention") or (is_standard(node, "MatMul") and _of_activations(node)):
            yield Candidate(name, aliases, "Attention")
            if cache_inputs(node):
                yield Candidate(name, aliases, "Cache")
        elif is_standard(node, "MatMul", "Conv", "ConvTranspose"):
            yield Candidate(name, aliases, layers.get(node, ""))
    for found in unlisted(model, {str(node.outputs[0].name) for node in model.graph if is_standard(node, *_SELECTED)}):
        yield Candidate(found.layer, (found.layer,), "")


def _of_activations(node: ir.Node) -> bool:
    return all(constant(value) is None for value in node.inputs)
