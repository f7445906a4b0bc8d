"""`ignore` and `targets`: names of layers, or "re:" and a regular expression."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from qcompile.errors import RecipeError
from qcompile.misspelt import mend, nearest

_SHOWN = 5
"""Names of layers that the error on a pattern shows."""


def selects(patterns: Iterable[str], names: Iterable[str]) -> bool:
    """Return True when a pattern is one of the names, or is "re:" and a regular expression that matches one whole."""
    candidates = tuple(names)
    return any(
        any(re.fullmatch(pattern[3:], name) for name in candidates)
        if pattern.startswith("re:")
        else pattern in candidates
        for pattern in patterns
    )


def exactly(name: str) -> str:
    """Return the pattern that selects the layer of this name, which may begin like a regular expression."""
    return f"re:{re.escape(name)}" if name.startswith("re:") else name


def check_patterns(setting: str, patterns: Iterable[str], layers: Iterable[Collection[str]]) -> None:
    """Raise RecipeError for the first pattern that selects no layer.

    Args:
        setting: "ignore" or "targets", for the message.
        patterns: the patterns of the recipe.
        layers: the names of each layer: its layer name and the name of its node.
    """
    layers = list(layers)
    names = list(dict.fromkeys(name for layer in layers for name in layer))
    for pattern in patterns:
        if selects([pattern], names):
            continue
        if not pattern.startswith("re:"):
            raise RecipeError(f"{setting} {pattern!r}", "no layer has this name", mend(pattern, names))
        near = nearest(pattern[3:], names, _SHOWN)
        reason = f"the pattern matches the whole name of no layer, of {len(layers)}"
        advice = f"The nearest are {', '.join(near)}" if near else mend(pattern[3:], names)
        raise RecipeError(f"{setting} {pattern!r}", reason, advice)


def patterns_of(field: str, value: Any) -> tuple[str, ...]:
    """Return what is given as `ignore` or `targets`, one text or several, as a tuple of patterns.

    Raises:
        RecipeError: it is something else, or a regular expression is not valid.
    """
    if not isinstance(value, Iterable):
        raise RecipeError(field, f"it is {value!r}", "Give names of layers, or re: and a pattern; () for none")
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise RecipeError(
                f"{field} {pattern!r}", "it is not a text", "Give the name of a layer, or re: and a pattern"
            )
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except re.error as error:
            raise RecipeError(
                f"{field} {pattern!r}", f"the regular expression is not valid: {error}", "Correct it"
            ) from error
    return patterns
