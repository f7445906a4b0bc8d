"""Compile a language model without running it and print its peak memory; stream_memory.py runs it in a fresh process.

What counts is what compiling adds to a process that has imported the libraries: a decoder of one layer is compiled
first, because torch and the backends import most of themselves at the first use. Then the kernel's peak is reset,
through Linux's /proc. File pages that are mapped count like any others.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import qcompile
from qcompile.memory import return_freed_memory
from qcompile.models import random_folder


def _memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)
    assert found is not None
    return int(found[1]) * 1024


def _compile(source: Path, recipe: str, backend: str, output_format: str, output: Path) -> None:
    qcompile.compile(
        source, recipe, backend=backend, output_format=output_format, output=output, verify=False, tune="none"
    )


def main(source: str, recipe: str, backend: str, output_format: str, output: str) -> None:
    with tempfile.TemporaryDirectory() as small:
        random_folder.write(Path(small) / "in", random_folder.Sizes(64, 128, 1, 2, 256))
        _compile(Path(small) / "in", recipe, backend, output_format, Path(small) / "out")
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = _memory("VmRSS"), time.perf_counter()
    _compile(Path(source), recipe, backend, output_format, Path(output))
    seconds, peak = time.perf_counter() - start, _memory("VmHWM")
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak, "added": peak - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
