"""What qcompile needs of a runtime to talk to a language model: one protocol, implemented by every backend."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from qcompile.errors import InputError

_QUESTION = "Tell what happened, word for word, and in the order in which it did. " * 8
_NEW_TOKENS = 32
_FEWEST_ANSWERS = 3
"""What `answer_speed` asks, how long an answer may be, and how many are measured however long they take."""


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


@dataclasses.dataclass(frozen=True)
class AnswerSpeed:
    """How fast a model answers: medians over some answers.

    Attributes:
        answers: how many were measured.
        prompt_tokens: that were read for one.
        new_tokens: that were made.
        first_token_s: seconds until the first of them.
        tokens_per_s: behind the first; 0 where no answer had any.
    """

    answers: int
    prompt_tokens: float
    new_tokens: float
    first_token_s: float
    tokens_per_s: float


def answer_speed(talk: Chat, *, seconds: float, progress: Callable[[float], None] | None = None) -> AnswerSpeed:
    """Measure how fast a model answers questions of some hundred tokens, none of which begins as the one before.

    So nothing but what a template puts in front is still in the cache. What the model makes of them does not matter; it
    may end an answer whenever it likes. Raises InputError where the model's context has no room for them.

    Args:
        talk: the model; its first answer is not counted.
        seconds: how long to measure; at least three answers are.
        progress: called with the fraction that is done.
    """
    answers = list[Answer]()

    def ask(number: int) -> Answer:
        question = Message("user", f"{number}. {_QUESTION}")
        return talk.answer([question], max_new_tokens=_NEW_TOKENS, show=lambda _piece: True)

    ask(0)
    begin = time.perf_counter()
    while len(answers) < _FEWEST_ANSWERS or time.perf_counter() - begin < seconds:
        answers.append(ask(len(answers) + 1))
        if progress is not None:
            progress(min((time.perf_counter() - begin) / seconds, 1.0))
    rates = [each.tokens_per_s for each in answers if each.new_tokens > 1]
    return AnswerSpeed(
        len(answers),
        statistics.median(each.prompt_tokens for each in answers),
        statistics.median(each.new_tokens for each in answers),
        statistics.median(each.first_token_s for each in answers),
        statistics.median(rates or [0.0]),
    )


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
