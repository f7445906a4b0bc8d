"""What `qcompile chat` runs on a folder that qcompile wrote for OpenVINO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.peers_llm.protocol import Refused, serve
from qcompile.backends.openvino.chat import open_chat
from qcompile.backends.openvino.greedy_chat import GreedyChat


class ChatOpenVino:
    """The decoder of a conversation."""

    packages = ("openvino",)

    def __init__(self, folder: str, threads: int) -> None:
        chat = open_chat(Path(folder), threads=threads)
        if not isinstance(chat, GreedyChat):
            raise Refused("it takes another token than the most probable one")
        self.decoder = chat.decoder

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        return itertools.islice(self.decoder.answer(prompt), count)

    def logits(self, window: list[int]) -> np.ndarray:
        raise Refused(f"it makes logits of the last position alone, not of {len(window)}")


if __name__ == "__main__":
    serve(ChatOpenVino)
