"""Artifacts as models of lm-evaluation-harness: `--model qcompile --model_args pretrained=FOLDER`.

Importing this module registers the model, and `python -m qcompile.lm_evaluation` is the harness's command line with it:
version 0.4.13 has no other way to find it. Harnesses that read the entry points `lm_eval.models`, as its pull request
4013 has it, find it there. Needs the extra `evaluate`; nothing in qcompile imports this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from qcompile.artifact import load
from qcompile.errors import ModelError, RecipeError, UnsupportedError
from qcompile.evaluation import open_decoder
from qcompile.evaluation_decoder import LanguageModel
from qcompile.evaluation_scores import negative_log_likelihood
from qcompile.text_tokenizer import TextTokenizer, open_tokenizer, read_settings

NAME = "qcompile"

_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")
"""Keys of config.json under which it says how many tokens a model can read, as the harness looks for them."""

_DEFAULT_LENGTH = 2048
"""What the harness takes where no file says it."""


class QCompileLM(TemplateLM):  # type: ignore[misc]  # no annotations that mypy is to follow
    """A compiled language model, one request at a time, greedy.

    Does not sample, and does not apply chat templates.

    Args:
        pretrained: folder of the artifact.
        tokenizer: a tokenizer.json or its folder; None: the one in the artifact.
        max_length: most tokens of a request, those at the end; None: what config.json says, else 2048.
        max_gen_toks: most tokens that are generated where a task does not say it.
        threads: of the runtime; its own choice when None.
        batch_size: 1, which is also what "auto" comes to.
        max_batch_size: not looked at.
        device: not looked at: the harness says "cuda:0" where nobody does, and artifacts run on the CPU.

    Raises:
        QCompileError: the folder holds no artifact of a language model, or an argument is not valid.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        threads: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # noqa: ARG002 # the harness passes it on
        device: str | None = None,  # noqa: ARG002 # the same
    ) -> None:
        super().__init__()
        if str(batch_size).partition(":")[0] not in ("1", "auto"):
            raise RecipeError(f"batch_size {batch_size}", "requests are computed one by one", "Leave it out")
        folder = Path(pretrained)
        self.model: LanguageModel = open_decoder(load(folder), threads=threads)
        self.text: TextTokenizer = open_tokenizer(folder if tokenizer is None else Path(tokenizer))
        configuration = read_settings(folder / "config.json")
        generation = read_settings(folder / "generation_config.json")
        said = next((configuration[key] for key in _LENGTHS if key in configuration), _DEFAULT_LENGTH)
        self.max_length = int(said if max_length is None else max_length)
        self.max_gen_toks = int(max_gen_toks)
        self._ends = _ends(generation.get("eos_token_id", configuration.get("eos_token_id")), self.text.ends)
        self._read: tuple[Sequence[int], np.ndarray] = ((), np.empty(0))

    @property
    def eot_token_id(self) -> int:
        """The token at the end of a text; raises ModelError where the tokenizer has none."""
        if self.text.ends is None:
            mend = "Add eos_token to tokenizer_config.json"
            raise ModelError("the tokenizer", "it says no token that ends a text", mend)
        return self.text.ends

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no other context."""
        return self.eot_token_id if self.text.begins is None else self.text.begins

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return ids, by default with what the tokenizer adds, but no second token at the beginning."""
        if add_special_tokens is None:
            begins = self.text.tokenizer.id_to_token(self.text.begins) if self.text.begins is not None else None
            add_special_tokens = begins is None or not string.startswith(begins)
        return self.text.encode(string, special=add_special_tokens)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log likelihood of each text, every token of it scored once."""
        found = []
        for (text,) in _shown((request.args for request in requests), len(requests), disable_tqdm):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return (log likelihood, whether it is what greedy decoding gives) of each continuation behind its context."""
        found = []
        for key, context, continuation in _shown(requests, len(requests), disable_tqdm):
            found.append(self._score(context, continuation))
            self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        read = (context + continuation)[-self.max_length - 1 : -1]
        tokens = np.asarray(continuation[-len(read) :], dtype=np.int64)
        logits = self._logits(read)[len(read) - len(tokens) :]
        nats = negative_log_likelihood(logits, tokens).sum()
        return -float(nats), bool((logits.argmax(axis=-1) == tokens).all())

    def _logits(self, ids: list[int]) -> np.ndarray:
        """Return the logits behind ids; those of the last call again: choices of one token differ in nothing before."""
        if self._read[0] != ids:
            self._read = ids, self.model.logits(np.asarray([ids], dtype=np.int64))[0]
        return self._read[1]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what greedy decoding gives until a stop string, the end of the text or the most tokens."""
        found = []
        for context, settings in _shown((request.args for request in requests), len(requests), disable_tqdm):
            found.append(self._generate(context, normalize_gen_kwargs(settings, self.max_gen_toks)))
            self.cache_hook.add_partial("generate_until", (context, settings), found[-1])
        return found

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings["do_sample"]:
            raise UnsupportedError("do_sample", "artifacts decode greedily here", "Pass --gen_kwargs do_sample=False")
        most = settings["max_gen_toks"]
        if most >= self.max_length:
            reason = f"the model reads {self.max_length} with the context"
            raise RecipeError(f"max_gen_toks {most}", reason, "Pass a smaller one with --gen_kwargs, or max_length")
        stops = [stop for stop in settings["until"] if stop]
        ids: list[int] = []
        text = ""
        read = self.tok_encode(context)[most - self.max_length :] or [self.prefix_token_id]
        for token in itertools.islice(_greedy(self.model, read), most):
            if token in self._ends:
                break
            ids.append(token)
            text = self.text.decode(ids)
            if any(stop in text for stop in stops):
                break
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _greedy(model: LanguageModel, ids: Sequence[int]) -> Iterator[int]:
    """Yield the most likely token behind the ids, then behind that, without an end."""
    logits = model.logits(np.asarray([ids], dtype=np.int64))
    while True:
        token = int(logits[0, -1].argmax())
        yield token
        logits = model.following(np.asarray([[token]], dtype=np.int64))


def _ends(said: Any, otherwise: int | None) -> frozenset[int]:
    """Return the tokens that end a text: what a configuration says, one or several, else that of the tokenizer."""
    found = otherwise if said is None else said
    return frozenset(found if isinstance(found, list) else [found] if found is not None else [])


def _shown(items: Iterable[Any], count: int, disable: bool) -> Iterable[Any]:
    found: Iterable[Any] = tqdm(items, total=count, disable=disable, desc=NAME)
    return found


if NAME not in MODEL_REGISTRY:  # it is where the harness has found the entry point
    register_model(NAME)(QCompileLM)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
