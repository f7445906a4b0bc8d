"""A language model as what gives logits for token ids, whatever its artifact looks like inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qcompile.errors import ModelError
from qcompile.manifest import Port
from qcompile.session import Session

_IDS, _MASK, _POSITIONS, _LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
_PAST, _PRESENT = "past_key_values.", "present."


class LanguageModel(Protocol):
    """Gives logits for token ids.

    Attributes:
        vocabulary: number of tokens that it knows.
    """

    vocabulary: int

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 logits [batch, sequence, vocabulary] for texts from their beginning, int64 [batch, sequence].

        Row i is about the token behind i, and depends on the tokens 0 to i. All of them are below `vocabulary`.
        """
        ...

    def following(self, ids: np.ndarray) -> np.ndarray:
        """Return the same for tokens that come behind those of the last call, which are not computed again.

        Raises ModelError for a model that does not keep them.
        """
        ...


class Decoder:
    """A model of one graph whose inputs and outputs have the names that optimum gives them, with its cache or without.

    `input_ids`, and where the model has them `attention_mask`, `position_ids` and `past_key_values.*`, to `logits` and
    `present.*`. Does not pad: all texts of a batch are equally long.

    Args:
        session: runs it.
        inputs: of the graph.
        outputs: of the graph.
        subject: what errors call it.

    Raises:
        ModelError: it has other inputs, or no logits.
    """

    def __init__(self, session: Session, inputs: Sequence[Port], outputs: Sequence[Port], subject: str) -> None:
        self._session, self._inputs, self._subject = session, inputs, subject
        self._past: dict[str, np.ndarray] = {}
        self._length = 0
        self._cache = [port for port in inputs if port.name.startswith(_PAST)]
        names = {port.name for port in inputs}
        unknown = sorted(names - {_IDS, _MASK, _POSITIONS} - {port.name for port in self._cache})
        found = [port for port in outputs if port.name == _LOGITS]
        mend = "Give a decoder that qcompile compiled from a Hugging Face folder or a GGUF file"
        if _IDS not in names or not found:
            raise ModelError(subject, f"it is no language model: it has no {_IDS} or no {_LOGITS}", mend)
        if unknown:
            raise ModelError(subject, f"what its inputs {', '.join(unknown)} stand for is not known", mend)
        size = (found[0].shape or (None,))[-1]
        one = np.zeros((1, 1), np.int64)
        self.vocabulary = size if isinstance(size, int) else self.logits(one).shape[-1]

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """See `LanguageModel`."""
        self._length = 0
        self._past = {port.name: _empty(port, len(ids)) for port in self._cache}
        return self._run(ids)

    def following(self, ids: np.ndarray) -> np.ndarray:
        """See `LanguageModel`."""
        if not self._cache:
            raise ModelError(
                self._subject, "it has no cache of keys and values", "Compile the model from its Hugging Face folder"
            )
        return self._run(ids)

    def _run(self, ids: np.ndarray) -> np.ndarray:
        batch, sequence = ids.shape
        end = self._length + sequence
        made = {
            _IDS: ids,
            _MASK: np.ones((batch, end)),
            _POSITIONS: np.broadcast_to(np.arange(self._length, end), ids.shape),
        }
        feed = {port.name: made[port.name].astype(port.dtype) for port in self._inputs if port.name in made}
        found = self._session.run({**feed, **self._past})
        self._past = {port.name: found[port.name.replace(_PAST, _PRESENT)] for port in self._cache}
        self._length = end
        return found[_LOGITS].astype(np.float32, copy=False)


def _empty(port: Port, batch: int) -> np.ndarray:
    """Return an input of the cache that holds nothing yet: of no length on the free axis behind the batch."""
    _, *sizes = port.shape or ()
    return np.zeros([batch, *(size if isinstance(size, int) else 0 for size in sizes)], port.dtype)
