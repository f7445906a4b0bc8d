"""Triton's backend through the conformance suite; without a card it is torch on the processor that computes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from qcompile.graph import is_standard
from qcompile.qdq import is_dequantized
from tests.backends.conformance import BackendConformance

pytest.importorskip("triton")


class TestTriton(BackendConformance):
    name = "triton"

    def integer_kernels(self, model_file: Path) -> int:
        layers = [node for node in ir.load(model_file).graph if is_standard(node, "MatMul", "Conv", "ConvTranspose")]
        return sum(all(map(is_dequantized, node.inputs[:2])) for node in layers)
