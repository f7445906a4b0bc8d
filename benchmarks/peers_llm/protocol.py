"""JSON lines over standard input and output between the benchmark and one language model of one peer.

Requests: {"do": "load", "folder": path, "threads": n}, {"do": "answer", "prompt": [token ids], "tokens": n} and
{"do": "loss", "windows": [[token ids], ...]}. One line comes back for each: {"ready": true, "versions": {...}},
{"first_token_s": s, "decode_tokens_per_s": f, "tokens": [token ids]}, {"nats": f}, or {"refused": why}. What a
library prints by itself goes to standard error. Works with the standard library and numpy alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np


class Peer(Protocol):
    """A language model that is loaded."""

    packages: Sequence[str]

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        """Yield `count` tokens of the greedy answer, each as soon as it is known; the end token does not end it."""

    def logits(self, window: list[int]) -> np.ndarray:
        """Logits at every position, float [tokens, vocabulary], without a past."""


class Refused(Exception):
    """The peer cannot do what was asked for; the message says why."""


def timed(tokens: Iterator[int]) -> dict[str, object]:
    """Return when the first token came, and how many came per second after it."""
    start = time.perf_counter()
    found, times = [], []
    for token in tokens:
        times.append(time.perf_counter())
        found.append(int(token))
    return {
        "first_token_s": times[0] - start,
        "decode_tokens_per_s": (len(found) - 1) / (times[-1] - times[0]),
        "tokens": found,
    }


def nats(logits: np.ndarray, window: Sequence[int]) -> float:
    """Mean negative log-likelihood of every token but the first, in float64."""
    rows = np.asarray(logits, dtype=np.float64)[:-1]
    highest = rows.max(axis=1, keepdims=True)
    normalizers = highest[:, 0] + np.log(np.exp(rows - highest).sum(axis=1))
    return float((normalizers - rows[np.arange(len(rows)), list(window[1:])]).mean())


def serve(load: Callable[[str, int], Peer]) -> None:
    """Answer requests until standard input ends.

    Args:
        load: opens a folder (or file) with that many threads.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, object]
        try:
            if request["do"] == "load":
                peer = load(request["folder"], request["threads"])
                versions = {name: importlib.metadata.version(name) for name in peer.packages}
                reply = {"ready": True, "versions": versions}
            elif peer is None:
                reply = {"refused": "nothing is loaded"}
            elif request["do"] == "answer":
                reply = timed(peer.answer(request["prompt"], request["tokens"]))
            else:
                losses = [nats(peer.logits(window), window) for window in request["windows"]]
                reply = {"nats": float(np.mean(losses))}
        except Refused as refusal:
            reply = {"refused": str(refusal)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
