"""A small artifact for tests."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.artifact import Artifact
from qcompile.artifact_writing import sole_writer, write_artifact
from qcompile.backends import Lowered
from qcompile.recipe import Recipe
from qcompile.report import LayerReport, Report

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
adding (float[batch, 3] x, int64[batch] n) => (float[batch, 3] y) <float[3] b = {1.0, 2.0, 3.0}> { y = Add(x, b) }
"""
REPORT = Report(model="adding", layers=[LayerReport("fc", "Linear", "kept", "too small")], latency={"float_ms": 1.5})


def save(folder: Path, external: str | None = None) -> Lowered:
    model = ir.from_onnx_text(TEXT)
    model.graph.initializers["b"].const_value = ir.tensor(np.arange(1, 4, dtype=np.float32), name="b")
    ir.save(model, folder / "model.onnx", external_data=external, size_threshold_bytes=0)
    return Lowered("model.onnx", ("model.onnx", external) if external else ("model.onnx",))


def write(output: Path | None, how=save, **other) -> Artifact:
    graph = ir.from_onnx_text(TEXT).graph
    fields = {
        "recipe": Recipe("float", ignore=("a",)),
        "backend": "onnxruntime",
        "target": "avx2",
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "calibration": "0123",
        "report": REPORT,
    }
    return write_artifact(output, how, **(fields | other))


def check_output(output: Path) -> None:
    """Do what comes before the work on an artifact, and no work."""
    _nothing(output=output)


@sole_writer
def _nothing(*, output: Path) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_web_application(output: Path) -> Path:
    output.mkdir()
    (output / "manifest.json").write_text('{"name": "shop", "start_url": "/"}')
    return output / "manifest.json"
