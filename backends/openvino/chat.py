"""Conversations with a folder of openvino_genai."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcompile.backends.openvino.cached_attention import attends_to_all_before
from qcompile.backends.openvino.generation import MODEL_FILE
from qcompile.backends.openvino.greedy_chat import GreedyChat, collected, prepared
from qcompile.backends.openvino.paged import open_paged
from qcompile.backends.openvino.runtime import core
from qcompile.chat import Answer, Chat, Message, Show, has_template
from qcompile.errors import InputError, MissingDependencyError, ModelError
from qcompile.generation import generation_of
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
        tokenizer = self.pipeline.get_tokenizer()
        said, _ = prepared(tokenizer, messages, self.has_template, self.context_length)
        config = self.pipeline.get_generation_config()
        config.max_new_tokens = max_new_tokens
        pieces: list[str] = []
        started = time.perf_counter()
        try:
            metrics = self.pipeline.generate(said, config, collected(pieces, show)).perf_metrics
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


def open_chat(folder: Path, *, threads: int | None) -> Chat:
    """Load a folder: our own loop where the most probable token is to be taken, else the pipeline of openvino_genai.

    The loop takes four fifths of the pipeline's time for a token (SmolLM2, 2 threads, openvino_genai 2026.4). Raises
    MissingDependencyError, ModelError, and RecipeError for a wrong number of threads.
    """
    check_threads(threads)
    try:
        import openvino_genai
    except ImportError as error:
        reason = f"conversations on OpenVINO need openvino-genai ({error})"
        raise MissingDependencyError("openvino-genai", reason, "pip install 'qcompile[genai]'") from error
    try:
        context_length = generation_of(folder).context_length
        file = folder / "generation_config.json"
        config = openvino_genai.GenerationConfig(file) if file.exists() else openvino_genai.GenerationConfig()
        model = core().read_model(folder / MODEL_FILE)
        paged = attends_to_all_before(model)
        if paged and _takes_the_most_probable(config):
            tokenizer = openvino_genai.Tokenizer(folder)
            end = frozenset(config.stop_token_ids | {config.eos_token_id, tokenizer.get_eos_token_id()})
            decoder = open_paged(model, threads=threads, context_length=context_length)
            return GreedyChat(decoder, tokenizer, end, has_template(folder))
        properties: dict[str, Any] = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        if not paged:
            properties["ATTENTION_BACKEND"] = "SDPA"
        pipeline = openvino_genai.LLMPipeline(folder, "CPU", **properties)
        return OpenVinoChat(pipeline, context_length, has_template(folder))
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(str(folder), f"openvino_genai does not open it: {error}", _MEND) from error


def _takes_the_most_probable(config: Any) -> bool:
    """Whether a GenerationConfig of openvino_genai asks for the most probable token, whatever was said before."""
    penalties = config.repetition_penalty != 1 or config.presence_penalty or config.frequency_penalty
    return config.is_greedy_decoding() and not (penalties or config.stop_strings or config.min_new_tokens)
