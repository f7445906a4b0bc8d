"""Models from ONNX text and arrays, for tests of what users hand to compile."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HEADER = '<ir_version: 10, opset_import: ["" : {opset}]>'


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def model_of(body: str, opset: int = 23, **initializers: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f"{HEADER.format(opset=opset)} {body}")
    values = {str(value.name): value for node in model.graph for value in node.inputs if value is not None}
    for name, array in initializers.items():
        values[name].const_value = ir.tensor(array, name=name)
        values[name].shape, values[name].type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(values[name])
    return model
