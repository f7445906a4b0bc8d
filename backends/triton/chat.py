"""Conversations with a decoder that torch runs: the most probable token each time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.backends.greedy import answered
from qcompile.backends.triton.decoder import TorchDecoder, decoder_of
from qcompile.backends.triton.session import TorchSession
from qcompile.chat import Answer, Message, Show, check_length, has_template, plain_text, refused_template
from qcompile.errors import MissingDependencyError, ModelError
from qcompile.generation import generation_of
from qcompile.text_tokenizer import TextTokenizer, open_tokenizer

_UNFINISHED = "\ufffd"
"""What a tokenizer makes of the first bytes of a character whose others are in the next token."""


@dataclasses.dataclass
class TorchChat:
    """A decoder with the tokenizer of transformers.

    Attributes:
        decoder: goes on with the tokens.
        tokenizer: of the text.
        template: transformers' tokenizer, which writes a conversation as the model's template says.
        end: tokens that end an answer.
        has_template: see `qcompile.chat.Chat`.
    """

    decoder: TorchDecoder
    tokenizer: TextTokenizer
    template: Any
    end: frozenset[int]
    has_template: bool

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """See `qcompile.chat.Chat`."""
        prompt = self._prompt(messages)
        check_length(len(prompt), self.decoder.context_length)
        tokens: list[int] = []
        shown: list[str] = []

        def write(token: int) -> bool:
            tokens.append(token)
            text = self.tokenizer.decode(tokens)
            return text.endswith(_UNFINISHED) or add(text)

        def add(text: str) -> bool:
            piece = text[sum(map(len, shown)) :]
            shown.append(piece)
            return show(piece) if piece else True

        def finish() -> str:
            add(self.tokenizer.decode(tokens))
            return "".join(shown)

        return answered(self.decoder, prompt, self.end, max_new_tokens, write, finish)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        if not self.has_template:
            return self.tokenizer.encode(plain_text(messages))
        from jinja2 import TemplateError

        said = [dataclasses.asdict(each) for each in messages]
        try:
            text = self.template.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise refused_template(error) from error
        return self.tokenizer.encode(str(text), special=False)


def open_conversation(folder: Path, model: ir.Model, session: TorchSession) -> TorchChat:
    """Return a conversation with a model that is loaded, and whose tokenizer lies in the folder.

    Raises:
        MissingDependencyError: the extra `hf` is not installed.
        ModelError: the tokenizer or the configuration cannot be read, or the model is no decoder with a cache.
    """
    generation, tokenizer, template = generation_of(folder), open_tokenizer(folder), has_template(folder)
    end = frozenset(generation.end) | ({tokenizer.ends} if tokenizer.ends is not None else set())
    decoder = decoder_of(session, model, generation.context_length, str(folder))
    return TorchChat(decoder, tokenizer, _template(folder) if template else None, end, template)


def _template(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        reason = f"templates of conversations need transformers ({error})"
        raise MissingDependencyError("transformers", reason, "pip install 'qcompile[hf]'") from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(str(folder), f"transformers does not read its tokenizer: {error}", "Save it again") from error
