"""How a language model is to be used: what its graph does not say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.errors import ModelError

CONFIGURATION, GENERATION = "config.json", "generation_config.json"
"""Files of transformers."""
MODEL_ALONE = ", or compile with output_format='model' (--output-format model)"
"""What else can be done where a model lacks what answers need."""

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""Where configurations of transformers say how many positions a model knows."""

_SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
"""What runtimes take of a generation config of transformers, by the same names."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a language model is to be used.

    Attributes:
        context_length: most tokens of a conversation.
        end: tokens that end an answer; the first also pads where there is no other.
        begin: token that begins a text, or None.
        pad: token that fills up shorter texts of a batch, or None.
        search: how tokens are chosen, by the names of transformers' generation config.
    """

    context_length: int
    end: tuple[int, ...]
    begin: int | None = None
    pad: int | None = None
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
        *,
        context_length: int | None = None,
    ) -> Generation:
        """Read what config.json and generation_config.json of transformers say; the second one counts where both do.

        Args:
            config: of the language model itself, not of one that contains it.
            generation_config: None: there is none.
            context_length: None: as the configuration says.

        Raises:
            ModelError: nothing says how long the context is, or which token ends an answer.
        """
        said = {**config, **{name: value for name, value in (generation_config or {}).items() if value is not None}}
        context_length = context_length or next((said[name] for name in _CONTEXT if said.get(name)), None)
        if not _is_count(context_length) or not context_length:
            raise ModelError(
                "config.json", "it does not say how many positions the model knows", f"Give context_length{MODEL_ALONE}"
            )
        end = said.get("eos_token_id")
        end = tuple(end) if isinstance(end, list | tuple) else (end,)
        if not end or not all(map(_is_count, end)):
            raise ModelError(
                "config.json", "it does not say which token ends an answer", f"Add eos_token_id to it{MODEL_ALONE}"
            )
        search = {name: said[name] for name in _SEARCH if said.get(name) is not None}
        return cls(context_length, end, said.get("bos_token_id"), said.get("pad_token_id"), search)


def _is_count(said: Any) -> bool:
    return isinstance(said, int) and not isinstance(said, bool) and said >= 0


def generation_of(folder: Path) -> Generation:
    """Read how a model is used from the configuration that lies in a folder; raises ModelError where that fails."""
    config = _read(folder / CONFIGURATION)
    text = config.get("text_config")
    path = folder / GENERATION
    return Generation.of(text if isinstance(text, dict) else config, _read(path) if path.exists() else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(str(path), f"it cannot be read: {error}", "Download the folder again") from error
    return said
