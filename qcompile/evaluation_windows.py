"""Windows over a long text: every token is scored once, with as much before it as its window holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from qcompile.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once, and which of them are scored.

    Attributes:
        begin: position of the first token in the text.
        end: that behind the last.
        first: the first that is scored; those before it are only read.
    """

    begin: int
    end: int
    first: int


def strided_windows(count: int, size: int, stride: int) -> Iterator[Window]:
    """Yield windows that begin `stride` tokens apart, as Hugging Face's guide to the perplexity of models has them.

    Each token but the first of the text is scored once, in the first window that it is in, with `size - stride` tokens
    or more before it, or all that there are. A stride of the whole size is not allowed: nothing would be before the
    first token of a window.

    Args:
        count: length of the text, in tokens.
        size: most tokens of a window, 2 or more.
        stride: 1 to size - 1.

    Raises:
        RecipeError: the size or the stride is another.
    """
    if size < 2:
        raise RecipeError(f"window {size}", "a token is scored by what is before it", "Give 2 or more, such as 512")
    if not 1 <= stride < size:
        reason = f"the first token that a window of {size} scores needs one before it"
        raise RecipeError(f"stride {stride}", reason, f"Give 1 to {size - 1}")
    return _windows(count, size, stride)


def _windows(count: int, size: int, stride: int) -> Iterator[Window]:
    begin, scored = 0, 1
    while scored < count:
        end = min(begin + size, count)
        yield Window(begin, end, scored)
        begin, scored = begin + stride, end
