"""llama.cpp through llama-cpp-python: the GGUF file as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from llama_cpp import Llama

from benchmarks.peers_llm.protocol import serve


class LlamaCpp:
    """A GGUF file; logits need every position kept, so they are a second context of the same file."""

    packages = ("llama-cpp-python",)

    def __init__(self, path: str, threads: int) -> None:
        self.settings = {"model_path": path, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.model = Llama(n_ctx=2048, **self.settings)
        self.scorer: Llama | None = None

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        self.model.reset()  # else it would keep the cache of the prompt before, which is the same
        return itertools.islice(self.model.generate(prompt, temp=0.0), count)

    def logits(self, window: list[int]) -> np.ndarray:
        self.scorer = self.scorer or Llama(n_ctx=2048, logits_all=True, **self.settings)
        self.scorer.reset()
        self.scorer.eval(window)
        return self.scorer.scores[: len(window)]


if __name__ == "__main__":
    serve(LlamaCpp)
