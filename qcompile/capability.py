"""Can a backend run what a recipe asks for? Answered before any work is done."""

from __future__ import annotations

import dataclasses

from qcompile.backends import Backend
from qcompile.errors import CalibrationError, UnsupportedError
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.recipe import Recipe, named_recipes
from qcompile.scheme import Scheme

SATURATING_TARGETS = ("avx2",)
"""Processors whose products of 8-bit pairs saturate in 16 bits: weights of 7 bits cannot (255 * 63 * 2 < 2**15)."""


def quantizers(recipe: Recipe) -> list[InsertQdq]:
    """Return the passes of the recipe that quantize layers."""
    built = (step.build() for step in recipe.steps)
    return [item for item in built if isinstance(item, InsertQdq)]


def check_data(recipe: Recipe, calibration: object) -> None:
    """Raise CalibrationError when a recipe asks for what only calibration data gives, and there is none.

    That is static activations, and a pass that cannot run without statistics and does not decide by them whether to
    run: smoothing by a given alpha.
    """
    if calibration is not None:
        return
    if any(not quantizer.activations.dynamic for quantizer in quantizers(recipe)):
        reason = "the scales of static activations come from calibration data, and there is none"
        mend = "Give calibration data, or use a dynamic recipe such as w8a8-dynamic"
        raise CalibrationError(f"recipe {recipe.name}", reason, mend)
    for step in recipe.steps:
        built = step.build()
        if built.without_calibration() is None and not built.may_match_nothing:
            reason = f"{step.pass_name} works from calibration data, and there is none"
            mend = f"Give calibration data, or leave {step.pass_name} out of the recipe"
            raise CalibrationError(f"recipe {recipe.name}", reason, mend)


def for_target(recipe: Recipe, backend: Backend, target: str | None) -> Recipe:
    """Return the recipe for a processor: weights of 7 bits where 8-bit products saturate.

    Raises:
        UnsupportedError: the backend does not know the target.
    """
    if target is None:
        return recipe
    if target not in backend.targets:
        reason = f"{backend.name} has no such target"
        raise UnsupportedError(f"target {target!r}", reason, f"Use one of {', '.join(backend.targets)}")
    if target not in SATURATING_TARGETS:
        return recipe
    return recipe.override(weights={"bits": 7}) if quantizers(recipe) else recipe


def integer_operators(recipe: Recipe, backend: Backend) -> frozenset[str]:
    """Return the operators that the backend computes in integers with the schemes of the recipe."""
    return frozenset(
        row.operator
        for row in backend.capabilities
        for quantizer in quantizers(recipe)
        if _is(row.activations, quantizer.activations) and _is(row.weights, quantizer.weights)
    )


def check_recipe(recipe: Recipe, backend: Backend) -> None:
    """Raise UnsupportedError, naming the nearest recipe, when no operator can be quantized as the recipe asks."""
    if not quantizers(recipe) or integer_operators(recipe, backend):
        return
    able = [name for name in named_recipes() if integer_operators(Recipe.from_name(name), backend)]
    raise UnsupportedError(
        f"recipe {recipe.name}",
        f"{backend.name} computes none of its operators in integers",
        f"Use {' or '.join(able[:2])}",
    )


def _is(row: Scheme | None, wanted: Scheme) -> bool:
    return row is not None and dataclasses.replace(row, bits=wanted.bits) == wanted
