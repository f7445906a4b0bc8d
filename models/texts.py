"""English text that is on every machine: the topics of Python's own help system (about 460 kB)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics

from qcompile.errors import CalibrationError

WORDS_PER_PASSAGE = 60


def _paragraphs() -> Iterator[str]:
    """Paragraphs of prose, each once: several topics repeat whole sections of the language reference."""
    seen: set[str] = set()
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            text = " ".join(block.split())
            prose = len(text) > 0 and sum(character.isalpha() or character == " " for character in text) > 0.85 * len(
                text
            )
            if prose and text not in seen:
                seen.add(text)
                yield text


@functools.cache
def passages() -> tuple[str, ...]:
    """Disjoint passages of at least 60 words: consecutive paragraphs joined. The same for one version of Python."""
    joined: list[str] = []
    current: list[str] = []
    for paragraph in _paragraphs():
        current.append(paragraph)
        if sum(len(part.split()) for part in current) >= WORDS_PER_PASSAGE:
            joined.append(" ".join(current))
            current = []
    return tuple(joined)


def _spread(pool: Sequence[str], count: int) -> list[str]:
    if not 0 < count <= len(pool):
        raise CalibrationError("reference text", f"{count} passages were asked for", f"Ask for 1 to {len(pool)}")
    return [pool[index * len(pool) // count] for index in range(count)]


def calibration_texts(count: int) -> list[str]:
    """Passages for calibration, spread evenly over all topics; never one of `held_out_texts`."""
    return _spread(passages()[0::2], count)


def held_out_texts(count: int) -> list[str]:
    """Passages for measuring, spread evenly over all topics; never one of `calibration_texts`."""
    return _spread(passages()[1::2], count)
