"""onnxruntime-genai on a folder with genai_config.json: its own builder's, or one that qcompile wrote.

`build SOURCE TARGET` runs `onnxruntime_genai.models.builder -p int4 -e cpu --extra_options int4_accuracy_level=4`,
everything else as it is by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime_genai

from benchmarks.peers_llm.protocol import serve


def build(source: str, target: str) -> None:
    """Export a Hugging Face folder with 4-bit weights."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target]
    command += ["-p", "int4", "-e", "cpu", "--extra_options", "int4_accuracy_level=4"]
    subprocess.run([*command, "-c", f"{target}-cache"], check=True)


class GenAiOnnxRuntime:
    """The folder's model; the number of threads is set in the configuration, the only place it has."""

    packages = ("onnxruntime-genai",)

    def __init__(self, folder: str, threads: int) -> None:
        configuration = onnxruntime_genai.Config(folder)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        configuration.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = onnxruntime_genai.Model(configuration)

    def answer(self, prompt: list[int], count: int) -> Iterator[int]:
        length = len(prompt) + count
        generator = self._generator(max_length=length, min_length=length, do_sample=False)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        for _ in range(count):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def logits(self, window: list[int]) -> np.ndarray:
        generator = self._generator(max_length=len(window) + 1)
        generator.append_tokens(np.array(window, dtype=np.int32))
        return np.asarray(generator.get_output("logits"))[0]

    def _generator(self, **settings: object) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        parameters.set_search_options(**settings)
        return onnxruntime_genai.Generator(self.model, parameters)


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(*sys.argv[2:4])
    else:
        serve(GenAiOnnxRuntime)
