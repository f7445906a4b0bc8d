"""What qcompile needs of a runtime to talk to a language model: one protocol, implemented by every backend."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from qcompile.errors import InputError


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
    """A language model that is loaded in a runtime.

    Attributes:
        has_template: whether the model says how a conversation is written; without, it goes on with `plain_text`.
    """

    has_template: bool

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """Answer the last message; what the cache holds of those before is not read again.

        Raises InputError where the messages are longer than the context, or the model's template has no place for them.
        """
        ...


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens begin both sequences."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder, as Hugging Face has it, comes with a template of conversations.

    Models that were taught to go on with a text, and not to answer, have none. Raises OSError or ValueError where
    tokenizer_config.json cannot be read.
    """
    if (folder / "chat_template.jinja").exists():
        return True
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    return isinstance(said, dict) and bool(said.get("chat_template"))


def plain_text(messages: Sequence[Message]) -> str:
    """Return what was said as one text: answers behind what they went on with, everything else on a line of its own."""
    text = "".join(each.content if each.role == "assistant" else f"\n{each.content}" for each in messages)
    return text.removeprefix("\n")


def check_length(tokens: int, context_length: int) -> None:
    """Raise InputError where a conversation leaves no room for an answer."""
    if tokens >= context_length:
        reason = f"it has {tokens} tokens, and the model knows {context_length}"
        raise InputError("conversation", reason, "Begin a new one, or say less")


def refused_template(error: Exception) -> InputError:
    """Return the error for messages that the template of a model has no place for, with what the runtime says of it."""
    reason = f"the model's template refuses it: {error}".rstrip(".\n")
    mend = "Leave out the system message, and let user and assistant take turns; or mend the template of the model"
    return InputError("conversation", reason, mend)
