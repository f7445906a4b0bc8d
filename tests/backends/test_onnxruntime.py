"""ONNX Runtime through the conformance suite. The rewrites of its lowering are tested one by one in onnxruntime/."""

from __future__ import annotations

from pathlib import Path

from tests.backends.conformance import BackendConformance
from tests.backends.onnxruntime.rewrites import optimized

INTEGER_KERNELS = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "MatMulInteger", "QLinearConv"}


class TestOnnxRuntime(BackendConformance):
    name = "onnxruntime"

    def integer_kernels(self, model_file: Path) -> int:
        return sum(node.op_type in INTEGER_KERNELS for node in optimized(model_file).graph.node)
