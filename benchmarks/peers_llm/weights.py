"""Weight-only quantizers of peers: a Hugging Face folder in, its weights after quantization out, and how long it took.

Started as `MODULE METHOD SOURCE TARGET` with {"bits", "group_size", "calibration": [[token ids], ...]} as JSON on
standard input. TARGET is a safetensors file of dequantized float32 tensors under the names of the source. The last
line on standard output is {"seconds": s}: the quantizer alone, without reading and writing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked for: symmetric integers of `bits`, one scale for each `group_size` inputs of an output."""

    source: str
    bits: int
    group_size: int
    calibration: list[list[int]]

    def model(self) -> torch.nn.Module:
        """The float model, in float32."""
        return AutoModelForCausalLM.from_pretrained(self.source, dtype=torch.float32).eval()

    def batches(self) -> list[torch.Tensor]:
        """Calibration, one sequence each: int64 [1, tokens]."""
        return [torch.tensor([ids]) for ids in self.calibration]


Tensors = Mapping[str, torch.Tensor]

Quantize = Callable[[Task, torch.nn.Module], Callable[[], Tensors]]
"""Quantizes, and may change the model; what it returns gives the tensors that changed, by name, and is not timed."""


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linears of the decoder's blocks by name: all but lm_head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def main(methods: Mapping[str, Quantize]) -> None:
    """Run the method that the command line names."""
    method, source, target = sys.argv[1:4]
    task = Task(source, **json.load(sys.stdin))
    model = task.model()
    start = time.perf_counter()
    dequantized = methods[method](task, model)
    seconds = time.perf_counter() - start
    save_file({name: tensor.detach().float().contiguous().clone() for name, tensor in dequantized().items()}, target)
    print(json.dumps({"seconds": seconds}))
