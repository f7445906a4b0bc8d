"""Measurement of an artifact against the float model."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.backends import get
from qcompile.backends.onnxruntime import OnnxRuntimeBackend
from qcompile.backends.onnxruntime.session import OnnxRuntimeSession
from qcompile.contract import Finding
from qcompile.errors import VerificationError
from qcompile.outcome import file_bytes, measure, model_name
from qcompile.report.data import LayerReport, Report

HEADER = '<ir_version: 10, opset_import: ["" : 23]>'
FLOAT = f"{HEADER} g (float[b, 4] x) => (float[b, 4] y) {{ y = Relu(x) }}"
X = np.array([[1, -2, 3, 4]], np.float32)


def opener(engine, folder, lowered):
    return lambda: engine.open_artifact(folder / lowered.model_file)


def measured(float_text: str, artifact_text: str, folder: Path, x: np.ndarray = X) -> Report:
    engine, report = get("onnxruntime"), Report()
    lowered = engine.lower(ir.from_onnx_text(artifact_text), folder, target=None)
    measure(
        report,
        engine,
        ir.from_onnx_text(float_text),
        lambda: engine.open_artifact(folder / lowered.model_file),
        folder,
        lowered,
        [{"x": x}],
        (),
    )
    return report


def test_the_same_model_is_perfect(tmp_path):
    accuracy = measured(FLOAT, FLOAT, tmp_path).accuracy
    assert accuracy["cosine"] == {"y": pytest.approx(1)}
    assert accuracy["sqnr_db"] == np.inf


@pytest.mark.parametrize(
    "artifact",
    [
        "g (float[b, 4] x) => (float[b] y) <int64[1] s = {-1}> { r = Relu(x) y = Reshape(r, s) }",
        "g (float[b, 4] x) => (float[1, b, 4] y) <int64[1] s = {0}> { r = Relu(x) y = Unsqueeze(r, s) }",
        "g (float[b, 4] x) => (float[b, 8] y) { r = Relu(x) y = Concat<axis = 1>(r, r) }",
        "g (float[b, 4] x) => (float[c, 4] y) { r = Relu(x) y = Concat<axis = 0>(r, r) }",
    ],
)
def test_an_output_of_another_shape_is_refused(tmp_path, artifact):
    with pytest.raises(VerificationError, match=r"output y has shape .* where the float model's has \[1, 4\]"):
        measured(FLOAT, f"{HEADER} {artifact}", tmp_path)


def test_how_many_were_found_may_differ(tmp_path):
    found = f"{HEADER} g (float[b, 4] x) => (int64[2, n] y, float[b, 4] z) {{ z = OP(x) y = NonZero(z) }}"
    accuracy = measured(found.replace("OP", "Relu"), found.replace("OP", "Tanh"), tmp_path).accuracy
    assert accuracy["cosine"]["y"] == 0
    assert 0 < accuracy["cosine"]["z"] < 1


def test_a_measure_of_nothing_is_no_number(tmp_path):
    accuracy = measured(
        text := f"{HEADER} g (float[b, 4] x) => (int64[2, n] y) {{ z = Relu(x) y = NonZero(z) }}",
        text,
        tmp_path,
        -abs(X),
    ).accuracy
    assert np.isnan(accuracy["cosine"]["y"])
    assert np.isnan(accuracy["sqnr_db"])


@dataclasses.dataclass(frozen=True)
class OneAtATime(OnnxRuntimeBackend):
    """ONNX Runtime; remembers which sessions were still open when another was."""

    opened: list[weakref.ref[OnnxRuntimeSession]] = dataclasses.field(default_factory=list)

    def remembered(self, opens, *arguments):
        assert [session for session in self.opened if session() is not None] == []
        session = opens(self, *arguments)
        self.opened.append(weakref.ref(session))
        return session

    def open_artifact(self, model_path):
        return self.remembered(OnnxRuntimeBackend.open_artifact, model_path)

    def open_session(self, model):
        return self.remembered(OnnxRuntimeBackend.open_session, model)


def test_one_session_is_open_at_a_time_because_each_holds_the_weights(tmp_path):
    engine, report, model = OneAtATime(), Report(), ir.from_onnx_text(FLOAT)
    lowered = engine.lower(model, tmp_path, target=None)
    measure(
        report,
        engine,
        model,
        lambda: engine.open_artifact(tmp_path / lowered.model_file),
        tmp_path,
        lowered,
        [{"x": X}],
        (),
    )
    assert len(engine.opened) == 3
    assert report.latency.keys() == {"float_ms", "quantized_ms"}
    assert all(0 < milliseconds < 1000 for milliseconds in report.latency.values())


def test_what_the_backend_computes_in_float_is_not_called_quantized(tmp_path):
    engine = get("onnxruntime")
    report = Report(
        layers=[
            LayerReport("a", "Linear", "quantized", "", 30.0, (4, 4), "uint8 x int8"),
            LayerReport("b", "Linear", "quantized", "", 40.0, (4, 4), "uint8 x int8"),
            LayerReport("c", "Linear", "ignored", "the recipe leaves it out"),
        ]
    )
    findings = (
        Finding("b", "kept", "no kernel"),
        Finding("b", "kept", "no kernel"),
        Finding("c", "kept", "no kernel"),
        Finding("z", "kept", "no layer"),
    )
    lowered = dataclasses.replace(engine.lower(ir.from_onnx_text(FLOAT), tmp_path, target=None), findings=findings)
    measure(
        report,
        engine,
        ir.from_onnx_text(FLOAT),
        lambda: engine.open_artifact(tmp_path / lowered.model_file),
        tmp_path,
        lowered,
        [],
        (),
    )
    assert report.layers[0].action == "quantized"
    assert report.layers[1] == LayerReport("b", "Linear", "kept", "no kernel", None, (4, 4), "")
    assert report.layers[2].reason == "the recipe leaves it out"
    assert [finding.layer for finding in report.findings] == ["c", "z"]
    assert "1 quantized, 1 kept, 1 ignored of 3" in report.summary()


@pytest.mark.parametrize(
    ("model", "graph", "output", "name"),
    [
        ("models/encoder.onnx", "main_graph", "out", "encoder"),
        (Path("models/encoder.onnx"), "main_graph", None, "encoder"),
        (torch.nn.LayerNorm(4), "main_graph", "out", "LayerNorm"),
        (ir.from_onnx_text(FLOAT), "g", "out", "g"),
        (ir.from_onnx_text(FLOAT), "main_graph", "folder/encoder-int8/", "encoder-int8"),
        (b"", None, None, "model"),
        ("caf\udce9.onnx", "main_graph", "out", "caf\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_model_is_called_what_the_user_calls_it(model, graph, output, name):
    assert model_name(model, graph, output) == name


def test_the_float_size_is_that_of_the_file(tmp_path):
    model = ir.from_onnx_text(f"{HEADER} g (float[b, 300] x) => (float[b, 400] y) {{ y = MatMul(x, w) }}")
    w = ir.tensor(np.ones((300, 400), np.float32), name="w")
    node = model.graph.node(0)
    value = ir.Value(name="w", shape=ir.Shape([300, 400]), type=ir.TensorType(w.dtype), const_value=w)
    node.replace_input_with(1, value)
    model.graph.register_initializer(value)
    ir.save(model, tmp_path / "model.onnx")
    assert file_bytes(model) == pytest.approx((tmp_path / "model.onnx").stat().st_size, abs=100)
    assert list(model.graph.initializers) == ["w"]


def test_layers_are_in_graph_order_embeddings_first():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(600, 16), torch.nn.Linear(16, 8), torch.nn.Linear(8, 4)).eval()
    ids = np.random.default_rng(0).integers(0, 600, (2, 8))
    report = qcompile.compile(model, "w8a8-static", calibration=[{"input": ids}] * 2).report
    assert [layer.name for layer in report.layers] == ["0", "1", "2"]
    assert [layer.operator for layer in report.layers] == ["Embedding", "Linear", "Linear"]
    assert report.model == "Sequential"
    assert report.layers[1].scheme == "uint8 per tensor × int8 per channel"


def test_a_convolution_without_an_integer_kernel_is_kept():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    report = qcompile.compile(model, "w8a8-static", calibration=[{"input": x}] * 2).report
    last = report.layers[-1]
    assert (last.action, last.sqnr_db, last.scheme) == ("kept", None, "")
    assert "this one is read in float" in last.reason


def test_layers_of_one_name_are_told_apart_by_their_shapes_and_called_so():
    """As those of torch's MultiheadAttention, which all belong to one module."""
    random = np.random.default_rng(0)
    weights = {"v": (8, 4), "w": (4, 8)}
    model = ir.from_onnx_text(
        f"{HEADER} g (float[b, 8] x) => (float[b, 8] y) {{ [part] h = MatMul(x, v) [part] y = MatMul(h, w) }}",
        initializers=[
            ir.tensor(random.normal(size=size).astype(np.float32), name=key) for key, size in weights.items()
        ],
    )
    report = qcompile.compile(model, "w8a8-dynamic", verify=False).report
    assert [(layer.name, layer.shape, layer.reason) for layer in report.layers] == [
        ("part", (8, 4), "one of 2 of this name"),
        ("part", (4, 8), "one of 2 of this name"),
    ]
