"""Conversations in which a model always says the most probable token, read and answered by our own loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from qcompile.backends.greedy import answered
from qcompile.backends.openvino.paged import PagedDecoder
from qcompile.chat import Answer, Message, Show, check_length, plain_text, refused_template


@dataclasses.dataclass
class GreedyChat:
    """A decoder with the tokenizer of openvino_genai.

    Attributes:
        decoder: what goes on with the tokens.
        tokenizer: openvino_genai.Tokenizer.
        end: tokens that end an answer.
        has_template: see `qcompile.chat.Chat`.
    """

    decoder: PagedDecoder
    tokenizer: Any
    end: frozenset[int]
    has_template: bool

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """See `qcompile.chat.Chat`."""
        import openvino_genai

        _, prompt = prepared(self.tokenizer, messages, self.has_template, self.decoder.context_length)
        pieces: list[str] = []
        streamer = openvino_genai.TextStreamer(self.tokenizer, collected(pieces, show))
        running = openvino_genai.StreamingStatus.RUNNING

        def finish() -> str:
            streamer.end()
            return "".join(pieces)

        def write(token: int) -> bool:
            return bool(streamer.write(token) == running)

        return answered(self.decoder, prompt, self.end, max_new_tokens, write, finish)


def prepared(tokenizer: Any, messages: Sequence[Message], template: bool, context_length: int) -> tuple[Any, list[int]]:
    """Return what LLMPipeline is given, the messages or a batch of one text, and the tokens of it.

    Raises InputError where they leave no room for an answer, or the template has no place for the messages.
    """
    import openvino_genai

    history = openvino_genai.ChatHistory([dataclasses.asdict(each) for each in messages])
    try:
        text = tokenizer.apply_chat_template(history, add_generation_prompt=True) if template else plain_text(messages)
    except RuntimeError as error:
        raise refused_template(error) from error
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=not template).input_ids.data[0].tolist()
    check_length(len(tokens), context_length)
    return history if template else [text], tokens


def collected(pieces: list[str], show: Show) -> Callable[[str], Any]:
    """Return what openvino_genai calls with each piece of text: it keeps the piece, and shows it."""
    import openvino_genai

    going, stop = openvino_genai.StreamingStatus.RUNNING, openvino_genai.StreamingStatus.STOP

    def streamed(piece: str) -> Any:
        pieces.append(piece)
        return going if show(piece) else stop

    return streamed
