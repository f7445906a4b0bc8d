"""Small models with linears and convolutions, and what the tests of quantizing passes ask of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.backends import get
from qcompile.calibration import Calibrator
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.scheme import Scheme

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
PER_TOKEN = Scheme("int8", "per_token", dynamic=True)
PER_TENSOR_DYNAMIC = Scheme("uint8", sym=False, dynamic=True)
WEIGHTS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(6, 4, 3, 3)).astype(np.float32)


def parse(text: str, **initializers: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for name, array in initializers.items():
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
        )
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, used in enumerate(node.inputs):
                if used is not None and used.name == name:
                    node.replace_input_with(index, value)
    ShapeInferencePass(strict_mode=False)(model)
    return model


def calibrator(model: ir.Model, seed: int = 0, count: int = 8) -> Calibrator:
    generator = np.random.default_rng(seed)
    shape = [dim if isinstance(dim, int) else 5 for dim in model.graph.inputs[0].shape or ()]
    samples = [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)]
    return Calibrator(samples, ObserveChannels, get("onnxruntime").open_session)


def linear(bias: bool = True) -> ir.Model:
    if not bias:
        return parse("g (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }", w=WEIGHTS)
    text = "g (float[n, 4] x) => (float[n, 6] y) { p = MatMul(x, w) y = Add(p, b) }"
    return parse(text, w=WEIGHTS, b=np.arange(6, dtype=np.float32))


def convolution(text: str = "y = Conv(x, k, b)", kernel: np.ndarray = KERNEL) -> ir.Model:
    graph = f"g (float[n, 4, 8, 8] x) => (float y) {{ {text} }}"
    return parse(graph, k=kernel, b=np.arange(6, dtype=np.float32) / 10)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(ir.to_proto(model))
    session = get("onnxruntime").open_session(model, optimization="disabled")
    return next(iter(session.run({"x": x}).values()))


def relative_error(before: ir.Model, after: ir.Model, seed: int = 0) -> float:
    shape = [dim if isinstance(dim, int) else 5 for dim in before.graph.inputs[0].shape or ()]
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    expected, actual = run(before, x), run(after, x)
    return float(np.linalg.norm(expected - actual) / np.linalg.norm(expected))
