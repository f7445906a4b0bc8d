"""Recipes that only benchmarks need."""

from __future__ import annotations

import dataclasses

from qcompile.recipe import Recipe

SMOOTHING = ("smooth_activations", "fold_scales")


def without_smoothing(name: str) -> Recipe:
    """Return a named recipe without the passes that move outliers from activations to weights."""
    recipe = Recipe.from_name(name)
    steps = tuple(step for step in recipe.steps if step.pass_name not in SMOOTHING)
    return dataclasses.replace(recipe, name=f"{name}, no smoothing", steps=steps)
