"""The hqq package: half-quadratic quantization on the CPU, asymmetric as it always is; reads no calibration."""

from __future__ import annotations

import torch
from hqq.core.quantize import Quantizer

from benchmarks.peers_llm.weights import Task, linears, main


def hqq(task: Task, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Quantizer.quantize with its defaults along the inputs (axis 1), in float32, and back."""
    found = {}
    for name, linear in linears(model).items():
        quantized, meta = Quantizer.quantize(
            linear.weight.data,
            nbits=task.bits,
            group_size=task.group_size,
            axis=1,
            compute_dtype=torch.float32,
            device="cpu",
        )
        found[f"{name}.weight"] = Quantizer.dequantize(quantized, meta)
    return found


if __name__ == "__main__":
    main({"hqq": hqq})
