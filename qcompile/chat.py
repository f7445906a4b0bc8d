"""What qcompile needs of a runtime to talk to a language model: one protocol, implemented by every backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: what was said.
    """

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said, and how long it took.

    Attributes:
        text: without tokens that end it.
        prompt_tokens: that were read for it; those of a conversation that the cache still held are not among them.
        new_tokens: that were made.
        first_token_s: seconds until the first of them.
        decode_s: seconds for the others.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second behind the first; 0 where there are none."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 and self.new_tokens > 1 else 0.0


Show = Callable[[str], bool]
"""Takes the next piece of text; returns False to stop."""


class Chat(Protocol):
    """A language model that is loaded in a runtime."""

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """Answer the last message; what the cache holds of those before is not read again.

        Raises InputError where the messages are longer than the context, or the model has no template for them.
        """
        ...
