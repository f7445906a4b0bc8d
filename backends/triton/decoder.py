"""A decoder on the device: a prompt at once, then token by token over caches of a fixed length."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qcompile.backends.decoder_caches import Cache, find_caches
from qcompile.backends.fx.types import torch_type
from qcompile.backends.greedy import GreedyDecoder
from qcompile.backends.triton.recorded import recorded
from qcompile.backends.triton.runtime import device
from qcompile.backends.triton.session import REFUSALS, TorchSession, load_sharing
from qcompile.backends.triton.static_caches import static_step
from qcompile.decoder_inputs import complete, is_computed
from qcompile.errors import InputError, ModelError, UnsupportedError

_SMALLEST = 256
"""Tokens that caches have room for at first; then twice as many each time that they are full."""
_ALIKE = 0.01
"""How far logits of one token may be apart, root mean square, in units of their standard deviation."""
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Step:
    """Reads one token over caches of a fixed length, into which it is written.

    Attributes:
        capacity: tokens that the caches have room for.
        caches: by the names of their inputs, [1, heads, capacity, size].
        token: int64 [1, 1], the token to read.
        length: int64 [1], how many tokens the caches hold.
        run: computes the logits of what these tensors hold, [1, 1, vocabulary].
    """

    capacity: int
    caches: Mapping[str, torch.Tensor]
    token: torch.Tensor
    length: torch.Tensor
    run: Callable[[], torch.Tensor]

    def logits(self, token: int, length: int) -> torch.Tensor:
        """Return the logits of a token behind as many others."""
        self.token.fill_(token)
        self.length.fill_(length)
        return self.run()


@dataclasses.dataclass
class TorchDecoder(GreedyDecoder):
    """Continues one sequence of tokens.

    Several tokens are read by the model as it is, whose caches grow; one by its `static_step`, which a card replays as
    a graph that was recorded once. The first token over new caches is read in both ways; where there is no such step,
    or it does not agree, caches grow with each token.

    Attributes:
        session: runs the model.
        model: that the session has loaded.
        ids: name of the input of tokens.
        scores: name of the output of logits.
        caches: inputs and outputs of the cache.
        past: the cache, by the names of its inputs, with room for more than was read.
        step: reads one token; None before the first.
        grows: whether there is no such step.
    """

    session: TorchSession
    model: ir.Model
    ids: str
    scores: str
    caches: tuple[Cache, ...]
    past: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    step: Step | None = None
    grows: bool = False

    def logits(self, new: Sequence[int]) -> np.ndarray:
        """See `GreedyDecoder`."""
        try:
            found = self._one(new[0]) if len(new) == 1 and self.read and not self.grows else self._several(new)
        except REFUSALS as error:
            raise InputError(f"{len(new)} tokens", f"torch refuses them: {error}", "Give fewer") from error
        self.read += new
        last: np.ndarray = found[0, -1].float().cpu().numpy()
        return last

    def _one(self, token: int) -> torch.Tensor:
        count = len(self.read) + 1
        if self.step is None or self.step.capacity < count:
            return self._first(token, min(max(_SMALLEST, 1 << (count - 1).bit_length()), self.context_length))
        self._fill(self.step)
        return self.step.logits(token, len(self.read))

    def _first(self, token: int, capacity: int) -> torch.Tensor:
        """Read a token in both ways, over new caches; where they do not agree, caches grow from then on."""
        before = self.past
        scores = self._several([token])
        grown, self.past = self.past, before
        try:
            step = self._new_step(capacity)
            self._fill(step)
            found = step.logits(token, len(self.read))
            self.grows = not _alike(found, scores)
        except (UnsupportedError, *REFUSALS) as error:
            _LOG.info("caches grow with each token: %s", error)
            self.grows = True
        if self.grows:
            self.past, self.step = grown, None
        else:
            self.step = step
        return scores

    def _several(self, new: Sequence[int]) -> torch.Tensor:
        feed: dict[str, Any] = {self.ids: np.array([new], np.int64)}
        feed |= {name: value[:, :, : len(self.read)] for name, value in self.past.items()}
        made = self.session.computed(complete(self.model.graph.inputs, feed))
        self.past = {cache.past: made[cache.present] for cache in self.caches}
        scores: torch.Tensor = made[self.scores]
        return scores

    def _fill(self, step: Step) -> None:
        """Let the caches of a step hold what was read."""
        if self.past is not step.caches:
            for name, value in step.caches.items():
                value[:, :, : len(self.read)] = self.past[name][:, :, : len(self.read)]
        self.past = step.caches

    def _new_step(self, capacity: int) -> Step:
        static = static_step(self.model, capacity)
        session = load_sharing(static.model, self.session)
        empty = {
            str(value.name): torch.zeros(_numbers(value), dtype=torch_type(value.dtype), device=device())
            for value in static.model.graph.inputs
        }
        caches = {cache.past: empty[cache.past] for cache in self.caches}
        run = functools.partial(_scores, session, empty, self.scores)
        return Step(capacity, caches, empty[self.ids], empty[static.length], recorded(run))


def _alike(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether logits are those of the same arithmetic: a tie at a quantizer may be answered in another way."""
    difference, spread = (found - wanted).float().square().mean().sqrt(), wanted.float().std()
    return bool(difference <= _ALIKE * spread)


def _scores(session: TorchSession, feed: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    found: torch.Tensor = session.computed(feed)[name]
    return found


def _numbers(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())


def decoder_of(session: TorchSession, model: ir.Model, context_length: int, subject: str) -> TorchDecoder:
    """Return the decoder of a model that is loaded; raises ModelError for what is no decoder with a cache."""
    caches = find_caches(model)
    pasts, presents = {each.past for each in caches}, {each.present for each in caches}
    ids = [str(value.name) for value in model.graph.inputs if value.name not in pasts and not is_computed(value)]
    scores = [str(value.name) for value in model.graph.outputs if value.name not in presents]
    shapes = [value.shape for value in model.graph.inputs if value.name in pasts]
    if not all(shape is not None and len(shape) == 4 for shape in shapes):
        raise ModelError(subject, "it has a cache without four axes", "Give a causal language model")
    if len(ids) != 1 or len(scores) != 1:
        reason = f"it reads {', '.join(ids) or 'nothing'} and writes {', '.join(scores) or 'nothing'} besides its cache"
        raise ModelError(subject, reason, "Give a causal language model")
    return TorchDecoder(context_length, session, model, ids[0], scores[0], caches)
