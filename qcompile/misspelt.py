"""Advice on a word that is not valid: what was meant, where that can be told, else what there is."""

from __future__ import annotations

import difflib
from collections.abc import Collection

SHOWN = 8
"""Most valid words that are shown where none is near."""

_NEAR = 0.6
"""Similarity of difflib from which a word may be a misspelling of another: its own default."""


def nearest(word: object, valid: Collection[str], count: int = 1) -> list[str]:
    """Return the valid words that this one may be a misspelling of, the nearest first: none where none is near.

    YAML gives numbers where it should be a text.
    """
    return difflib.get_close_matches(str(word), list(valid), n=count, cutoff=_NEAR)


def mend(word: object, valid: Collection[str]) -> str:
    """Return the advice for a word that is not valid: the nearest that is, else those that there are."""
    if not valid:
        return "Leave it out: nothing is valid here"
    near = nearest(word, valid)
    return f"The nearest is {near[0]!r}" if near else f"Choose from {listed(valid)}"


def listed(words: Collection[str]) -> str:
    """Return the words, the first few of many."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(list(words)[:SHOWN]) + more
