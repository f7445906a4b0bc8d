"""How well a compiled language model predicts a text, alone and beside the float model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from qcompile import backends
from qcompile.artifact import Artifact, load
from qcompile.compile import trace
from qcompile.errors import InputError, ModelError
from qcompile.evaluation_decoder import Decoder, LanguageModel
from qcompile.evaluation_scores import agreement, divergence, negative_log_likelihood
from qcompile.evaluation_windows import Window, strided_windows
from qcompile.manifest import ports
from qcompile.pipeline import Progress
from qcompile.session import check_threads
from qcompile.text_tokenizer import TOKENIZER, TextTokenizer, open_tokenizer, read_ids

_LARGEST = 700
"""Nats of which a float still has the exponential."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well an artifact predicts a text; what there is of a float model is about the same tokens of the same text.

    Attributes:
        path: folder of the artifact.
        backend: name of its runtime, which runs the float model too.
        tokens: how many were scored.
        window: most tokens that were read at once.
        stride: tokens from one window to the next.
        nats: mean negative log likelihood of a token.
        float_nats: that of the float model; None: there was none.
        divergence: mean Kullback-Leibler divergence of the prediction from the float model's, D(float || artifact), in
            nats.
        divergence_99: its 99th percentile over the tokens.
        agreement: part of the tokens at which both find the same one the most likely.
    """

    path: Path
    backend: str
    tokens: int
    window: int
    stride: int
    nats: float
    float_nats: float | None = None
    divergence: float | None = None
    divergence_99: float | None = None
    agreement: float | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the nats of a token."""
        return _perplexity(self.nats)

    @property
    def float_perplexity(self) -> float | None:
        """That of the float model; None: there was none."""
        return None if self.float_nats is None else _perplexity(self.float_nats)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: what is infinite is None, as is what was not measured."""
        measured = {"perplexity": self.perplexity, "float_perplexity": self.float_perplexity}
        found = {**dataclasses.asdict(self), "path": str(self.path), **measured}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in found.items()
        }

    def summary(self) -> str:
        """Return it as lines of text."""
        lines = [
            f"{self.path} · {self.backend}",
            f"tokens      {self.tokens}, in windows of {self.window}, {self.stride} apart",
            f"artifact    {self.nats:.4f} nats per token, perplexity {self.perplexity:.4g}",
        ]
        if self.float_nats is None:
            return (
                "\n".join([*lines, "float       not measured: there is no float model, which --against gives"]) + "\n"
            )
        lines += [
            f"float       {self.float_nats:.4f} nats per token, perplexity {self.float_perplexity:.4g}",
            f"difference  {self.nats - self.float_nats:+.4f} nats per token",
            f"divergence  {self.divergence:.3g} nats on average, 99th percentile {self.divergence_99:.3g}: "
            "Kullback-Leibler, from float",
            f"agreement   {self.agreement:.2%} of the most likely tokens are the same",
        ]
        return "\n".join(lines) + "\n"


def evaluate(
    artifact: str | Path | Artifact,
    text: str | Path,
    *,
    against: Any = None,
    tokenizer: str | Path | None = None,
    window: int = 512,
    stride: int = 256,
    threads: int | None = None,
    trust_input: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well an artifact predicts a text, and with a float model how far its predictions are from that one's.

    Does not apply to models that are no decoders. Logits of one window at a time are held, of both models.

    Args:
        artifact: its folder, or an Artifact.
        text: a text file, UTF-8.
        against: the float model, in any form that `compile` takes; it runs in float32 on the artifact's runtime.
        tokenizer: a tokenizer.json or its folder; None: that of the artifact, else of the float model's folder.
        window: most tokens that are read at once.
        stride: tokens from one window to the next, see `strided_windows`; the smaller, the more there is before each.
        threads: of the runtime; its own choice when None.
        trust_input: of `against`, as in `compile`.
        progress: as in `compile`.

    Raises:
        ArtifactError: a file is not what the manifest says.
        InputError: the text cannot be read or is too short, or there is no tokenizer, or it is another model's.
        ModelError: a model is no decoder or cannot be read, or its logits are not numbers.
        RecipeError: the window, the stride or the number of threads is not valid.
    """
    report_progress = progress or (lambda _stage, _part: None)
    check_threads(threads)
    strided_windows(2, window, stride)  # is refused before the models are loaded
    report_progress("loading", 0.0)
    opened = artifact if isinstance(artifact, Artifact) else load(artifact)
    ids = read_ids(Path(text), _tokenizer(opened.path, against, tokenizer))
    model = open_decoder(opened, threads=threads)
    report_progress("loading", 0.3)
    if ids.max() >= model.vocabulary:
        reason = f"the text has the token {ids.max()}, and the model knows {model.vocabulary}"
        raise InputError("the tokenizer", reason, "Give the model's own with --tokenizer")
    reference = None if against is None else _float_decoder(against, opened.backend, threads, trust_input)
    if reference is not None and reference.vocabulary != model.vocabulary:
        reason = f"it knows {reference.vocabulary} tokens, and the artifact {model.vocabulary}"
        raise ModelError("the float model", reason, "Give the model that the artifact was compiled from")
    parts = []
    for part in strided_windows(len(ids), window, stride):
        report_progress("evaluating", part.first / len(ids))
        parts.append(_scores(model, reference, ids, part))
    report_progress("evaluating", 1.0)
    nats, *compared = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = Evaluation(opened.path, opened.backend, len(nats), window, stride, float(nats.mean()))
    return _compared(found, *compared) if compared else found


def open_decoder(artifact: Artifact, *, threads: int | None = None) -> LanguageModel:
    """Load an artifact of a language model in its runtime; raises ModelError when it is of another model."""
    manifest = artifact.manifest
    return Decoder(artifact.open_session(threads=threads), manifest.inputs, manifest.outputs, str(artifact.path))


def _float_decoder(model: Any, backend: str, threads: int | None, trust_input: bool) -> LanguageModel:
    traced = trace(model, trust_input=trust_input)
    session = backends.get(backend).open_session(traced, threads=threads)
    return Decoder(session, ports(traced.graph.inputs), ports(traced.graph.outputs), "the float model")


def _tokenizer(folder: Path, against: Any, given: str | Path | None) -> TextTokenizer:
    if given is not None:
        return open_tokenizer(Path(given))
    places = [folder, *([Path(against)] if isinstance(against, str | Path) else [])]
    for place in places:
        if (place / TOKENIZER).is_file():
            return open_tokenizer(place)
    raise InputError(str(folder), f"there is no {TOKENIZER} in it", "Give the model's with --tokenizer")


def _scores(
    model: LanguageModel, reference: LanguageModel | None, ids: np.ndarray, window: Window
) -> tuple[np.ndarray, ...]:
    """Return, of each token that the window scores, the nats; and the float model's, divergence and agreement."""
    logits = _rows(model, ids, window, "the artifact")
    tokens = ids[window.first : window.end]
    nats = negative_log_likelihood(logits, tokens)
    if reference is None:
        return (nats,)
    expected = _rows(reference, ids, window, "the float model")
    found = divergence(expected, logits), agreement(expected, logits)
    return (nats, negative_log_likelihood(expected, tokens), *found)


def _rows(model: LanguageModel, ids: np.ndarray, window: Window, subject: str) -> np.ndarray:
    """Return the logits of the tokens that the window scores, [count, vocabulary]; raise where they are no numbers."""
    read = ids[None, window.begin : window.end - 1]
    logits = model.logits(read)[0, window.first - window.begin - 1 :]
    bad = np.flatnonzero(~np.isfinite(logits.max(axis=-1)))
    if len(bad):
        reason = f"its logits behind token {window.first - 1 + bad[0]} are not finite"
        raise ModelError(subject, reason, "Compile it with verify=True, or look for the layer that is broken")
    return logits


def _compared(found: Evaluation, float_nats: np.ndarray, divergences: np.ndarray, agrees: np.ndarray) -> Evaluation:
    return dataclasses.replace(
        found,
        float_nats=float(float_nats.mean()),
        divergence=float(divergences.mean()),
        divergence_99=float(np.percentile(divergences, 99)),
        agreement=float(agrees.mean()),
    )


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < _LARGEST else math.inf
