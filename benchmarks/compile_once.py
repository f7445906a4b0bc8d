"""Compile one reference model and print what it took as JSON; compile_time.py runs this file in a fresh process.

Memory is what compiling adds to a process that holds the float weights: the kernel's peak is reset just before, through
Linux's /proc. What is imported is no part of it, as it is none of the time: a model of one linear is traced first,
because torch imports most of its exporter at the first export. File pages that are mapped count like any others.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path

import onnxruntime  # noqa: F401  # the goal counts time after import, so everything heavy is imported here
import onnxscript  # noqa: F401
import torch
import transformers  # noqa: F401

import qcompile
from qcompile.models import texts


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)
    assert found is not None
    return int(found[1]) * 1024


def main(model: str, recipe: str, backend: str, output: str) -> None:
    qcompile.trace(torch.nn.Linear(2, 2), example_inputs=torch.zeros(2, 2))
    loaded = importlib.import_module(f"qcompile.models.{model}").load()
    calibration = list(loaded.batches(texts.calibration_texts(64)))
    weights = sum(parameter.numel() * 4 for parameter in loaded.module.parameters())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = _memory("VmRSS"), time.perf_counter()
    qcompile.compile(
        loaded.module,
        recipe,
        backend=backend,
        calibration=calibration,
        example_inputs=loaded.example(),
        dynamic_shapes=loaded.dynamic_shapes(),
        output=output,
    )
    seconds, peak = time.perf_counter() - start, _memory("VmHWM")
    print(json.dumps({"seconds": seconds, "weights": weights, "peak": peak, "added": peak - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
