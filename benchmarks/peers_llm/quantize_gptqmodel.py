"""GPTQModel on the CPU: GPTQ."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch

from benchmarks.peers_llm.weights import Task, Tensors, linears, main

# On 2 cores it takes one worker by default, and then refuses its own pool of two that loads models.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def gptq(task: Task, model: torch.nn.Module) -> Callable[[], Tensors]:
    """QuantizeConfig's defaults but for bits and group size; loads the folder by itself."""
    names = list(linears(model))
    scheme = QuantizeConfig(bits=task.bits, group_size=task.group_size, sym=True, device="cpu")
    quantizer = GPTQModel.load(task.source, scheme)
    batches = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task.calibration]
    quantizer.quantize(batches, batch_size=1)

    def dequantized() -> Tensors:
        with tempfile.TemporaryDirectory() as folder:
            quantizer.save(folder)
            loaded = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu").model
            return {f"{name}.weight": loaded.get_submodule(name).dequantize_weight().T for name in names}

    return dequantized


if __name__ == "__main__":
    main({"gptq": gptq})
