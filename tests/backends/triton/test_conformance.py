"""Triton's backend through the conformance suite; without a card it is torch on the processor that computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.backends import Lowered
from tests.backends.conformance import FLOAT32_ROUNDING, BackendConformance
from tests.backends.portable import Case

pytest.importorskip("triton")

from qcompile.backends.triton.integer_convolutions import CONVOLUTION, TRANSPOSED
from qcompile.backends.triton.integer_linears import LINEAR
from qcompile.backends.triton.lowering import fused, read
from qcompile.backends.triton.products import DOMAIN


def _layers(node: ir.Node) -> int:
    """How many layers a kernel computes: linears that read one value are joined, and split behind it."""
    (reader,) = node.outputs[0].consumers() or [node]
    return len(reader.outputs) if reader.op_type == "Split" else 1


class TestTriton(BackendConformance):
    name = "triton"

    def integer_kernels(self, model_file: Path) -> int:
        found = [node for node in fused(read(model_file)).graph if node.domain == DOMAIN]
        return sum(_layers(node) for node in found if node.op_type in (LINEAR, CONVOLUTION, TRANSPOSED))

    def check(self, backend: Any, case: Case, folder: Path, *, integer: int | None = None) -> Lowered:
        lowered = super().check(backend, case, folder, integer=integer)
        (plain, kernels) = (probe.session.run(case.feed) for probe in backend.probes(folder / lowered.model_file, []))
        for name, result in kernels.items():
            excess = np.abs(result - plain[name]) - case.step - FLOAT32_ROUNDING * np.abs(plain[name]).max()
            assert excess.max() <= 0
        return lowered
