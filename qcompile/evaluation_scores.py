"""What logits say of the tokens that follow: nats, the divergence of two predictions, agreement. Pure functions.

Computed in float64 by log-sum-exp, a few rows at a time: predictions over 49152 tokens at 512 positions are 200 MB in
float64, and are not needed whole. The largest logit of each row has to be finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ROWS = 16
"""Rows that are computed at once: their float64 copies stay in the processor's cache, and all at once take ten times as
long where there are 49152 tokens."""


def negative_log_likelihood(logits: Array, tokens: Array) -> Array:
    """Return -log softmax(logits)[token] of each row, in nats.

    Args:
        logits: float [count, vocabulary].
        tokens: integers [count].

    Returns:
        float64 [count].
    """
    found = np.empty(len(tokens))
    for piece in _pieces(len(tokens)):
        log_q = _log_probabilities(logits[piece])
        found[piece] = -np.take_along_axis(log_q, tokens[piece, None], axis=-1)[:, 0]
    return found


def divergence(reference: Array, logits: Array) -> Array:
    """Return the Kullback-Leibler divergence D(reference || logits) = sum of p (log p - log q) of each row, in nats.

    That is how many nats more it takes to say what follows, where it follows the reference's prediction p, in a code
    that is made for q. Tokens that the reference excludes (-inf) add nothing; it is infinite where only q excludes one.

    Args:
        reference: float [count, vocabulary].
        logits: the same of the other model.

    Returns:
        float64 [count].
    """
    found = np.empty(len(logits))
    for piece in _pieces(len(logits)):
        log_p, log_q = _log_probabilities(reference[piece]), _log_probabilities(logits[piece])
        p = np.exp(log_p)
        ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
        found[piece] = (p * ratio).sum(axis=-1)
    return found


def agreement(reference: Array, logits: Array) -> Array:
    """Return whether both find the same token the most likely, bool [count]; both are float [count, vocabulary]."""
    return np.asarray(reference.argmax(axis=-1) == logits.argmax(axis=-1))


def _log_probabilities(logits: Array) -> Array:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))
