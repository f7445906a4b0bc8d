"""Text by taking the most probable token each time: the loop that backends with a decoder of their own share."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from qcompile.chat import Answer, in_common


@dataclasses.dataclass
class GreedyDecoder(abc.ABC):
    """Continues one sequence of tokens; what it has read of a sequence before is not read again. Not for two threads.

    Attributes:
        context_length: most tokens of a sequence.
        read: tokens whose keys and values the caches hold.
    """

    context_length: int
    read: list[int] = dataclasses.field(default_factory=list, kw_only=True)

    @abc.abstractmethod
    def logits(self, new: Sequence[int]) -> np.ndarray:
        """Read tokens behind `read`, add them to it, and return the logits of the last, float32 [vocabulary].

        Raises InputError where the runtime refuses them.
        """

    def answer(self, tokens: Sequence[int]) -> Iterator[int]:
        """Yield the most probable token behind `tokens`, then the one behind that, until the context is full."""
        known = self.known(tokens)
        del self.read[known:]
        new = list(tokens[known:])
        while len(self.read) + len(new) <= self.context_length:
            token = int(self.logits(new).argmax())
            yield token
            new = [token]

    def known(self, tokens: Sequence[int]) -> int:
        """Return how many tokens need not be read again: those that begin both sequences, without the last."""
        return in_common(tokens[:-1], self.read)


def answered(
    decoder: GreedyDecoder,
    prompt: Sequence[int],
    end: Collection[int],
    max_new_tokens: int,
    write: Callable[[int], bool],
    finish: Callable[[], str],
) -> Answer:
    """Return the answer to a prompt, and how long it took.

    Args:
        decoder: goes on with the tokens.
        prompt: tokens of the conversation.
        end: tokens that end an answer; they are not written.
        max_new_tokens: most tokens of the answer.
        write: takes the next token; returns False to stop.
        finish: is called behind the last token, and returns the text.
    """
    unread = len(prompt) - decoder.known(prompt)
    started = time.perf_counter()
    first, count = 0.0, 0
    for token in itertools.islice(decoder.answer(prompt), max_new_tokens):
        first = first or time.perf_counter() - started
        count += 1
        if token in end or not write(token):
            break
    decoding = time.perf_counter() - started - first
    return Answer(finish(), unread, count, first, decoding)
