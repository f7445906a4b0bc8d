"""Conversations with a folder of openvino_genai."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcompile.chat import Answer, Message, Show
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
    """

    pipeline: Any
    context_length: int

    def answer(self, messages: Sequence[Message], *, max_new_tokens: int, show: Show) -> Answer:
        """See `qcompile.chat.Chat`; the tokens are chosen as generation_config.json says."""
        import openvino_genai

        history = openvino_genai.ChatHistory([dataclasses.asdict(each) for each in messages])
        self._check_length(history)
        config = self.pipeline.get_generation_config()
        config.max_new_tokens = max_new_tokens
        pieces: list[str] = []
        going, stop = openvino_genai.StreamingStatus.RUNNING, openvino_genai.StreamingStatus.STOP

        def streamed(piece: str) -> Any:
            pieces.append(piece)
            return going if show(piece) else stop

        started = time.perf_counter()
        try:
            metrics = self.pipeline.generate(history, config, streamed).perf_metrics
        except RuntimeError as error:
            raise InputError("conversation", f"openvino_genai refuses it: {error}", _MEND) from error
        first = metrics.get_ttft().mean / 1000
        return Answer(
            "".join(pieces),
            metrics.get_num_input_tokens(),
            metrics.get_num_generated_tokens(),
            first,
            time.perf_counter() - started - first,
        )

    def _check_length(self, history: Any) -> None:
        tokenizer = self.pipeline.get_tokenizer()
        text = tokenizer.apply_chat_template(history, add_generation_prompt=True)
        count = tokenizer.encode(text, add_special_tokens=False).input_ids.shape[1]
        if count >= self.context_length:
            reason = f"it has {count} tokens, and the model knows {self.context_length}"
            raise InputError("conversation", reason, "Begin a new one, or say less")


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
        return OpenVinoChat(openvino_genai.LLMPipeline(folder, "CPU", properties), context_length)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(str(folder), f"openvino_genai does not open it: {error}", _MEND) from error
