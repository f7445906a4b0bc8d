from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import backends
from qcompile.artifact_writing import write_artifact
from qcompile.recipe import Recipe
from qcompile.report import LayerReport, Report

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
adding (float[batch, 3] x, int64[batch, sequence] n) => (float[batch, 3] y, int64[batch, sequence] m)
{ y = Add(x, x)  m = Add(n, n) }
"""


@pytest.fixture
def artifact(tmp_path) -> Path:
    model = ir.from_onnx_text(TEXT)
    write_artifact(
        tmp_path / "artifact",
        lambda folder: backends.get("onnxruntime").lower(model, folder, target=None),
        recipe=Recipe("float"),
        backend="onnxruntime",
        target=None,
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
        calibration=None,
        report=Report(model="adding", layers=[LayerReport("fc", "Linear", "kept", "it is too small")]),
    )
    ir.save(model, tmp_path / "float.onnx")
    return tmp_path / "artifact"


@pytest.fixture
def perceptron(tmp_path) -> Path:
    """Two linears with a Relu between them, and calibration data for them."""
    generator = np.random.default_rng(0)
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        perceptron (float[batch, 32] x, float[32, 64] w1, float[64, 8] w2) => (float[batch, 8] y)
        { [first] h = MatMul(x, w1)  r = Relu(h)  [second] y = MatMul(r, w2) }
    """)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        shape = tuple(int(size) for size in value.shape)
        value.const_value = ir.tensor(generator.standard_normal(shape).astype(np.float32), name=value.name)
        model.graph.initializers[value.name] = value
    ir.save(model, tmp_path / "perceptron.onnx")
    np.savez(tmp_path / "data.npz", x=generator.standard_normal((16, 32)).astype(np.float32))
    return tmp_path / "perceptron.onnx"
