"""Conversations with a folder of openvino_genai."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcompile.chat import Answer, Message, Show, check_length, has_template, plain_text, refused_template
from qcompile.errors import InputError, MissingDependencyError, ModelError
from qcompile.generation import Generation
from qcompile.session import check_threads

_MEND = "Compile the model again with output_format='genai'"


@dataclasses.dataclass
class OpenVinoChat:
    """A pipeline of openvino_genai; it compares a conversation with its cache by itself.

    Attributes:
        pipeline: openvino_genai.LLMPipeline.
        context_length: most tokens of a conversation.
        has_template: see `qcompile.chat.Chat`.
    """

    pipeline: Any
    context_length: int
    has_template: bool

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """See `qcompile.chat.Chat`; the tokens are chosen as generation_config.json says."""
        import openvino_genai

        said = self._said(messages)
        config = self.pipeline.get_generation_config()
        config.max_new_tokens = max_new_tokens
        pieces: list[str] = []
        going, stop = openvino_genai.StreamingStatus.RUNNING, openvino_genai.StreamingStatus.STOP

        def streamed(piece: str) -> Any:
            pieces.append(piece)
            return going if show(piece) else stop

        started = time.perf_counter()
        try:
            metrics = self.pipeline.generate(said, config, streamed).perf_metrics
        except RuntimeError as error:
            mend = "Give other messages, or another max_new_tokens"
            raise InputError("conversation", f"openvino_genai refuses it: {error}", mend) from error
        first = metrics.get_ttft().mean / 1000
        return Answer(
            "".join(pieces),
            metrics.get_num_input_tokens(),
            metrics.get_num_generated_tokens(),
            first,
            time.perf_counter() - started - first,
        )

    def _said(self, messages: Sequence[Message]) -> Any:
        """Return what the pipeline is given: the messages, for it to apply the template, or a batch of one text."""
        import openvino_genai

        tokenizer = self.pipeline.get_tokenizer()
        if not self.has_template:
            text = plain_text(messages)
            check_length(tokenizer.encode(text).input_ids.shape[1], self.context_length)
            return [text]
        history = openvino_genai.ChatHistory([dataclasses.asdict(each) for each in messages])
        try:
            text = tokenizer.apply_chat_template(history, add_generation_prompt=True)
        except RuntimeError as error:
            raise refused_template(error) from error
        check_length(tokenizer.encode(text, add_special_tokens=False).input_ids.shape[1], self.context_length)
        return history


def open_chat(folder: Path, *, threads: int | None) -> OpenVinoChat:
    """Load a folder; raises MissingDependencyError, ModelError, and RecipeError for a wrong number of threads."""
    check_threads(threads)
    try:
        import openvino_genai
    except ImportError as error:
        reason = f"conversations on OpenVINO need openvino-genai ({error})"
        raise MissingDependencyError("openvino-genai", reason, "pip install 'qcompile[genai]'") from error
    properties = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        context_length = Generation.of(said.get("text_config", said)).context_length
        pipeline = openvino_genai.LLMPipeline(folder, "CPU", properties)
        return OpenVinoChat(pipeline, context_length, has_template(folder))
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(str(folder), f"openvino_genai does not open it: {error}", _MEND) from error
