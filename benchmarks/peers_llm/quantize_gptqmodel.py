"""GPTQModel on the CPU: GPTQ with and without desc_act."""

from __future__ import annotations

import functools
import tempfile

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from benchmarks.peers_llm.weights import Task, linears, main


def gptq(task: Task, model: torch.nn.Module, *, desc_act: bool) -> dict[str, torch.Tensor]:
    """QuantizeConfig's defaults but for bits, group size and desc_act; loads the folder by itself."""
    names = list(linears(model))
    scheme = QuantizeConfig(bits=task.bits, group_size=task.group_size, sym=True, desc_act=desc_act, device="cpu")
    quantizer = GPTQModel.load(task.source, scheme)
    batches = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task.calibration]
    quantizer.quantize(batches, batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        quantizer.save(folder)
        loaded = GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu").model
        return {f"{name}.weight": loaded.get_submodule(name).dequantize_weight().T for name in names}


if __name__ == "__main__":
    main({"gptq": functools.partial(gptq, desc_act=False), "gptq-desc-act": functools.partial(gptq, desc_act=True)})
