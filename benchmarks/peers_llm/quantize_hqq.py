"""The hqq package: half-quadratic quantization on the CPU, asymmetric as it always is; reads no calibration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hqq.core.quantize import Quantizer

from benchmarks.peers_llm.weights import Task, Tensors, linears, main


def hqq(task: Task, model: torch.nn.Module) -> Callable[[], Tensors]:
    """Quantizer.quantize with its defaults along the inputs (axis 1), in float32, and back."""
    found = {}
    for name, linear in linears(model).items():
        found[name] = Quantizer.quantize(
            linear.weight.data,
            nbits=task.bits,
            group_size=task.group_size,
            axis=1,
            compute_dtype=torch.float32,
            device="cpu",
        )
    return lambda: {f"{name}.weight": Quantizer.dequantize(*quantized) for name, quantized in found.items()}


if __name__ == "__main__":
    main({"hqq": hqq})
