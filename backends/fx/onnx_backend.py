"""The lowering behind ONNX's own interface of a backend, so that its test-suite runs on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx_ir as ir
import torch

from qcompile.backends.fx.lowering import lower
from qcompile.backends.fx.types import array_of, tensor_of
from qcompile.errors import UnsupportedOperator
from qcompile.graph import RANDOM


class OnnxBackend(onnx.backend.base.Backend):
    """Runs models through `lower`, on the processor or on CUDA."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> Prepared:
        """The model, ready to run; raises UnsupportedOperator where it cannot be lowered, or draws random numbers.

        What is drawn cannot be compared: `lower` takes it.
        """
        for node in model.graph.node:
            if node.op_type in RANDOM:
                raise UnsupportedOperator(
                    node.op_type, "what it draws is nobody else's", "Call `lower`, which takes it"
                )
        return Prepared(ir.from_proto(model), torch.device(device.lower()))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for CPU, and for CUDA where torch has it."""
        return device == "CPU" or (device == "CUDA" and torch.cuda.is_available())


class Prepared(onnx.backend.base.BackendRep):
    """A lowered model that takes and gives arrays."""

    def __init__(self, model: ir.Model, device: torch.device) -> None:
        self.module, self._device = lower(model).to(device), device
        self._types = [value.dtype for value in model.graph.outputs]

    def run(self, inputs: Sequence[Any], **_: Any) -> tuple[Any, ...]:
        """The outputs for inputs in the order of the model's."""
        with torch.no_grad():
            made = self.module(*(self._given(value) for value in inputs))
        return tuple(_array(value, dtype) for value, dtype in zip(made.values(), self._types, strict=True))

    def _given(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return [self._given(element) for element in value]
        return tensor_of(np.asarray(value), "an input").to(self._device)


def _array(value: Any, dtype: ir.DataType | None) -> Any:
    if isinstance(value, (list, tuple)):
        return [_array(element, dtype) for element in value]
    return value if value is None else array_of(value, dtype)
