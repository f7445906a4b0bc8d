"""neural-compressor: GPTQ with and without act_order; its prepare, calibrate, convert."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from neural_compressor.torch.quantization import GPTQConfig, convert, prepare

from benchmarks.peers_llm.weights import Task, Tensors, linears, main


def gptq(task: Task, model: torch.nn.Module, *, act_order: bool) -> Callable[[], Tensors]:
    """GPTQConfig's defaults but for bits, group size and act_order."""
    names = list(linears(model))
    scheme = GPTQConfig(bits=task.bits, group_size=task.group_size, use_sym=True, act_order=act_order)
    prepared = prepare(model, scheme)
    for batch in task.batches():
        prepared(batch)
    converted = convert(prepared)
    return lambda: {f"{name}.weight": converted.get_submodule(name).recover() for name in names}


if __name__ == "__main__":
    main(
        {
            "gptq": functools.partial(gptq, act_order=False),
            "gptq-act-order": functools.partial(gptq, act_order=True),
        }
    )
