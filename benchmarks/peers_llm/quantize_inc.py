"""neural-compressor: GPTQ with and without act_order, and TEQ; its prepare, calibrate, convert."""

from __future__ import annotations

import functools

import torch
from neural_compressor.torch.quantization import GPTQConfig, TEQConfig, convert, prepare

from benchmarks.peers_llm.weights import Task, linears, main


def gptq(task: Task, model: torch.nn.Module, *, act_order: bool) -> dict[str, torch.Tensor]:
    """GPTQConfig's defaults but for bits, group size and act_order."""
    names = list(linears(model))
    scheme = GPTQConfig(bits=task.bits, group_size=task.group_size, use_sym=True, act_order=act_order)
    prepared = prepare(model, scheme)
    for batch in task.batches():
        prepared(batch)
    converted = convert(prepared)
    return {f"{name}.weight": converted.get_submodule(name).recover() for name in names}


def teq(task: Task, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """TEQConfig's defaults, trained on the calibration; scales that no norm takes stay in front of the linear."""
    names = list(linears(model))
    scheme = TEQConfig(bits=task.bits, group_size=task.group_size, use_sym=True)
    prepared = prepare(model, scheme, example_inputs=task.batches()[0])
    for batch in task.batches():
        prepared(batch)
    converted = convert(prepared)
    return {f"{name}.weight": converted.get_submodule(name).recover() for name in names}


if __name__ == "__main__":
    main(
        {
            "gptq": functools.partial(gptq, act_order=False),
            "gptq-act-order": functools.partial(gptq, act_order=True),
            "teq": teq,
        }
    )
