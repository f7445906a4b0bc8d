"""AutoRound: rounding and clipping learned by signed gradient descent, 40 iterations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from auto_round import AutoRound
from transformers import AutoTokenizer

from benchmarks.peers_llm.weights import Task, Tensors, linears, main

ITERATIONS = 40


def autoround(task: Task, model: torch.nn.Module) -> Callable[[], Tensors]:
    """AutoRound's defaults but for bits, group size and the iterations; embedding and lm_head stay float."""
    names = list(linears(model))
    quantizer = AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(task.source),  # asked for, and not read: the data is tokens
        bits=task.bits,
        group_size=task.group_size,
        sym=True,
        iters=ITERATIONS,
        dataset=task.batches(),
        nsamples=len(task.calibration),
        seqlen=len(task.calibration[0]),
        device_map="cpu",
        enable_torch_compile=False,  # compiling takes longer than it saves on this model
    )
    quantized, _ = quantizer.quantize()
    return lambda: {f"{name}.weight": quantized.get_submodule(name).weight for name in names}


if __name__ == "__main__":
    main({"autoround": autoround})
