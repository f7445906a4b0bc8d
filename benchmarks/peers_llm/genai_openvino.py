"""openvino_genai.LLMPipeline on a folder in OpenVINO's form: a peer's, or one that qcompile wrote."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers_llm.protocol import serve


class GenAiOpenVino:
    """The pipeline as its samples open it; its own precision unless the argument `f32` asks for float32."""

    packages = ("openvino-genai", "openvino")

    def __init__(self, folder: str, threads: int) -> None:
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if "f32" in sys.argv else {}
        self.settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **hint}
        self.folder = folder
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", **self.settings)
        self.scorer: openvino.InferRequest | None = None

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        found: queue.Queue[int | None] = queue.Queue()

        class Tokens(openvino_genai.StreamerBase):
            def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
                for one in token if isinstance(token, list) else [token]:
                    found.put(one)
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                found.put(None)

        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = count, True, False
        prompt_tokens = openvino_genai.TokenizedInputs(
            openvino.Tensor(np.array([prompt], dtype=np.int64)), openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        )
        thread = threading.Thread(target=self.pipeline.generate, args=(prompt_tokens, settings, Tokens()))
        thread.start()
        yield from iter(found.get, None)
        thread.join()

    def logits(self, window: list[int]) -> np.ndarray:
        """The pipeline keeps its logits to itself, so the model of the folder is run by OpenVINO."""
        if self.scorer is None:
            model = Path(self.folder) / "openvino_model.xml"
            self.scorer = openvino.Core().compile_model(model, "CPU", self.settings).create_infer_request()
        self.scorer.reset_state()
        count = len(window)
        feed = {
            "input_ids": np.array([window], dtype=np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for value in self.scorer.model_inputs for name in value.names}
        return self.scorer.infer({name: feed[name] for name in feed if name in names})["logits"][0]


if __name__ == "__main__":
    serve(GenAiOpenVino)
