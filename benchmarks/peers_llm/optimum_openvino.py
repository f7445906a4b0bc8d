"""optimum-intel's OVModelForCausalLM with 4-bit weights, and its generate(), as its documentation shows.

`build SOURCE TARGET` makes the folder: OVWeightQuantizationConfig(bits=4, sym=True, group_size=64), everything else as
it is by default (embedding and lm_head in 8 bits). OpenVINO computes in bfloat16 by default on a CPU that has it;
the argument `f32` of `serve` asks for float32.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator

import numpy as np
import torch
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers_llm.protocol import serve

BITS, GROUP_SIZE = 4, 64


def build(source: str, target: str) -> None:
    """Export a Hugging Face folder with 4-bit weights, its tokenizer beside it."""
    scheme = OVWeightQuantizationConfig(bits=BITS, sym=True, group_size=GROUP_SIZE)
    OVModelForCausalLM.from_pretrained(source, export=True, quantization_config=scheme).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


class _Tokens(BaseStreamer):
    """Hands each new token to another thread; generate() gives the prompt first, which is left out."""

    def __init__(self) -> None:
        self.found: queue.Queue[int | None] = queue.Queue()
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        self.found.put(int(value.reshape(-1)[0]))

    def end(self) -> None:
        self.found.put(None)


class OptimumOpenVino:
    """The exported folder on OpenVINO's CPU plugin."""

    packages = ("optimum-intel", "openvino", "nncf", "transformers")

    def __init__(self, folder: str, threads: int) -> None:
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if "f32" in sys.argv else {}
        self.model = OVModelForCausalLM.from_pretrained(
            folder, ov_config={"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **hint}
        )

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        streamer, ids = _Tokens(), torch.tensor([prompt])
        settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "streamer": streamer}
        settings |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        thread = threading.Thread(target=self.model.generate, kwargs=settings)
        thread.start()
        yield from iter(streamer.found.get, None)
        thread.join()

    def logits(self, window: list[int]) -> np.ndarray:
        ids = torch.tensor([window])
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(*sys.argv[2:4])
    else:
        serve(OptimumOpenVino)
