"""Conversations with a folder of onnxruntime-genai."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.chat import Answer, Message, Show, check_length, has_template, in_common, plain_text, refused_template
from qcompile.errors import MissingDependencyError, ModelError
from qcompile.session import check_threads

_MEND = "Compile the model again with output_format='genai'"

_LEAST_ROOM = 2048
"""Tokens that memory is taken for at least; 131,072 of a model of 1 B parameters would be 8.6 GB."""


@dataclasses.dataclass
class OnnxRuntimeChat:
    """A model of onnxruntime-genai, and the conversation that its cache holds.

    Attributes:
        model: onnxruntime_genai.Model.
        tokenizer: onnxruntime_genai.Tokenizer of the model.
        context_length: most tokens of a conversation.
        has_template: see `qcompile.chat.Chat`.
        generator: of the conversation so far, or None before the first answer.
        held: tokens in the cache of the generator.
        room: tokens that its cache can hold: memory is taken for all of them at once.
    """

    model: Any
    tokenizer: Any
    context_length: int
    has_template: bool
    generator: Any = None
    held: list[int] = dataclasses.field(default_factory=list)
    room: int = 0

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """See `qcompile.chat.Chat`; the tokens are the most likely ones, or drawn as genai_config.json says."""
        tokens = self._tokens(messages)
        check_length(len(tokens), self.context_length)
        started = time.perf_counter()
        new = self._append(tokens, min(len(tokens) + max_new_tokens, self.context_length))
        stream, pieces, count = self.tokenizer.create_stream(), [], 0
        first = started
        while count < max_new_tokens and not self.generator.is_done():
            self.generator.generate_next_token()
            token = int(self.generator.get_next_tokens()[0])
            count += 1
            first = time.perf_counter() if count == 1 else first
            if self.generator.is_done() and token in self.tokenizer.eos_token_ids:
                break
            pieces.append(stream.decode(token))
            if not show(pieces[-1]):
                break
        self.held = [int(each) for each in self.generator.get_sequence(0)]
        return Answer("".join(pieces), new, count, first - started, time.perf_counter() - first)

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        return [int(each) for each in self.tokenizer.encode(self._text(messages))]

    def _text(self, messages: Sequence[Message]) -> str:
        if not self.has_template:
            return plain_text(messages)
        said = json.dumps([dataclasses.asdict(each) for each in messages])
        try:
            text: str = self.tokenizer.apply_chat_template(messages=said, add_generation_prompt=True)
        except RuntimeError as error:
            raise refused_template(error) from error
        return text

    def _append(self, tokens: list[int], wanted: int) -> int:
        """Give the generator what its cache does not hold yet; return how many tokens that are.

        Where there is no room for as many tokens as are wanted, a new one gets twice as much, and reads all of them.
        """
        import onnxruntime_genai

        # The last token was never read, and onnxruntime-genai 0.18 goes on right only behind one that was (measured).
        same = min(in_common(self.held, tokens), len(self.held) - 2, len(tokens) - 1)
        if self.generator is None or same <= 0 or wanted > self.room:
            self.generator = None  # its memory is given back before more is taken
            self.room = min(max(2 * wanted, _LEAST_ROOM), self.context_length)
            parameters = onnxruntime_genai.GeneratorParams(self.model)
            parameters.set_search_options(max_length=self.room)
            self.generator, same = onnxruntime_genai.Generator(self.model, parameters), 0
        else:
            self.generator.rewind_to(same)
        self.generator.append_tokens(np.asarray(tokens[same:], np.int32))
        return len(tokens) - same


def open_chat(folder: Path, *, threads: int | None) -> OnnxRuntimeChat:
    """Load a folder; raises MissingDependencyError, ModelError, and RecipeError for a wrong number of threads."""
    check_threads(threads)
    try:
        import onnxruntime_genai
    except ImportError as error:
        reason = f"conversations on ONNX Runtime need onnxruntime-genai ({error})"
        raise MissingDependencyError("onnxruntime-genai", reason, "pip install 'qcompile[genai]'") from error
    try:
        config = onnxruntime_genai.Config(str(folder))
        # Without a word onnxruntime-genai takes half of them.
        options = {"intra_op_num_threads": threads or _cores()}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = onnxruntime_genai.Model(config)
        said = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        tokenizer, template = onnxruntime_genai.Tokenizer(model), has_template(folder)
        # A template writes the token that begins a text by itself.
        tokenizer.update_options(add_special_tokens="false" if template else "true")
        return OnnxRuntimeChat(model, tokenizer, int(said["model"]["context_length"]), template)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ModelError(str(folder), f"onnxruntime-genai does not open it: {error}", _MEND) from error


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
