"""An artifact is verified again where it has gone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import qcompile
from qcompile.artifact_portable import GRAPH
from qcompile.backends.onnx_files import write
from qcompile.errors import (
    ArtifactError,
    CalibrationError,
    ModelError,
    RecipeError,
    UnsupportedError,
    VerificationError,
)
from qcompile.manifest import FileEntry
from qcompile.verify_artifact import verify_artifact
from qcompile.verify_quantizers import quantized_values, without_quantizers
from tests.backends.portable import parse
from tests.test_manifest import edit_manifest, seal_the_report_again
from tests.test_verify_artifact import WIDTH, network, samples


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [
        ("w8a8-static", "onnxruntime"),
        ("float", "onnxruntime"),
        ("w8a8-dynamic", "openvino"),
        ("smoothquant-o3", "openvino"),
    ],
)
def test_it_finds_what_compile_found(recipe: str, backend: str, tmp_path: Path) -> None:
    artifact = qcompile.compile(network(), recipe, backend=backend, calibration=samples(), output=tmp_path / "a")
    found = qcompile.verify(tmp_path / "a")
    assert found.agreements == tuple(artifact.report.agreements)
    assert [each.runtime.partition(",")[0] for each in found.agreements] == [backend] * len(found.agreements)
    assert (found.not_compared, found.accuracy, found.path) == ("", {}, tmp_path / "a")
    assert qcompile.load(tmp_path / "a").report.agreements == artifact.report.agreements


def replace(folder: Path, change) -> None:
    """Change the model file of an artifact and the manifest with it: as a runtime would that computes otherwise."""
    model = ir.load(folder / "model.onnx")
    change(model)
    write(model, folder, external=False)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=files | {"model.onnx": dataclasses.asdict(FileEntry.of(folder / "model.onnx"))})
    seal_the_report_again(folder)


def test_another_arithmetic_is_caught(tmp_path: Path) -> None:
    qcompile.compile(network(), "w8a8-static", calibration=samples(), output=tmp_path / "a")

    def change(model: ir.Model) -> None:
        value = next(v for name, v in model.graph.initializers.items() if name.startswith("w1") and "scale" in name)
        value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1), name=value.name)

    replace(tmp_path / "a", change)
    with pytest.raises(VerificationError, match=r"x2\S* is up to"):
        qcompile.verify(tmp_path / "a")


AVX2 = """
import sys, qcompile
for folder in sys.argv[1:]:
    try:
        print("right", qcompile.verify(folder).agreements)
    except qcompile.QCompileError as error:
        print(type(error).__name__, error)
"""


def test_a_processor_without_vnni_is_told(tmp_path: Path) -> None:
    """Pairs of 8-bit products saturate there; oneDNN runs on this processor as if it were such a one."""
    model = parse("(float[n,64] x) => (float[n,32] y) { y = MatMul(x, w) }", w=np.full((64, 32), 0.5, np.float32))
    data = [{"x": np.linspace(1, -0.1, 256, dtype=np.float32).reshape(4, 64)}]
    folders = {None: tmp_path / "8 bits", "avx2": tmp_path / "7 bits"}
    for target, folder in folders.items():
        qcompile.compile(model, "w8a8-static", backend="openvino", calibration=data, target=target, output=folder)
    command = [sys.executable, "-c", AVX2, *map(str, folders.values())]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    wrong, right = done.stdout.splitlines()
    assert wrong.startswith("VerificationError artifact on openvino: y is up to")
    assert right.startswith("right (Agreement(runtime='openvino'")


def test_the_artifact_that_nobody_looks_into_is_held_against_the_noise_of_its_activations(tmp_path: Path) -> None:
    """Values inside are seen in another artifact than the one that ends wrong; the float model is not at hand."""
    engine, model = (
        qcompile.backends.get("onnxruntime"),
        qcompile.rewrite(network(), "w8a8-static", calibration=samples()),
    )
    paths = {}
    for kind in ("right", "wrong"):
        (tmp_path / kind).mkdir()
        if kind == "wrong":
            value = next(v for name, v in model.graph.initializers.items() if name.startswith("w1") and "scale" in name)
            right, value.const_value = (
                value.const_value,
                ir.tensor(np.roll(value.const_value.numpy(), 1), name=value.name),
            )
        paths[kind] = tmp_path / kind / engine.lower(model, tmp_path / kind, target=None).model_file
    value.const_value = right

    def verified(kind: str) -> None:
        probes = engine.probes(paths["right"], [each.names for each in quantized_values(model)])
        verify_artifact(model, None, lambda: engine.open_artifact(paths[kind]), probes, samples()[0])

    verified("right")
    with pytest.raises(VerificationError, match=r"output x4 is .* times as far from the reference") as raised:
        verified("wrong")
    assert 2 < float(raised.value.reason.split()[3]) < 1000  # of what activations add; of nothing it would be endless


def test_the_float_model_is_compared_on_data(tmp_path: Path) -> None:
    artifact = qcompile.compile(network(), "w8a8-static", calibration=samples(2), verify=False, output=tmp_path / "a")
    found = qcompile.verify(artifact, against=network(), data=samples(3))
    session = qcompile.backends.get("onnxruntime").open_session(network())
    exact = np.concatenate([session.run(sample)["x4"] for sample in samples(3)])
    own = np.concatenate([artifact.run(sample)["x4"] for sample in samples(3)])
    expected = 10 * np.log10(np.sum(exact.astype(np.float64) ** 2) / np.sum((exact.astype(np.float64) - own) ** 2))
    assert found.accuracy["sqnr_db"] == pytest.approx(expected, abs=0.01)
    assert found.accuracy["cosine"]["x4"] == pytest.approx(1, abs=1e-3)
    assert found.accuracy["measured on"] == "3 samples"
    assert "verify=False" in found.not_compared
    assert qcompile.verify(artifact, against=network()).accuracy["measured on"] == "made-up inputs"


def test_a_torch_module_is_traced_with_the_data(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 8))
    data = [{"input": sample["x"]} for sample in samples(2)]
    artifact = qcompile.compile(module, "w8a8-static", calibration=data, output=tmp_path / "a")
    found = qcompile.verify(artifact, against=module, data=iter(data))
    assert found.accuracy["measured on"] == "2 samples"
    assert found.accuracy["sqnr_db"] > 20
    with pytest.raises(ModelError, match="Give data"):
        qcompile.verify(artifact, against=module)


def test_what_cannot_be_verified_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    artifact = qcompile.compile(network(), "w8a8-static", calibration=samples(2), verify=False, output=tmp_path / "a")
    with pytest.raises(ArtifactError, match=rf"there is no {GRAPH}.*--against"):
        qcompile.verify(tmp_path / "a")
    with pytest.raises(RecipeError, match="against"):
        qcompile.verify(artifact, data=samples(1))
    with pytest.raises(CalibrationError, match="no sample"):
        qcompile.verify(artifact, against=network(), data=[])
    other = parse("(float[n,64] z) => (float[n,64] y) { y = Neg(z) }")
    with pytest.raises(ModelError, match="its inputs are z where those of the artifact are x"):
        qcompile.verify(artifact, against=other)
    (tmp_path / "a" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="bytes"):
        qcompile.verify(tmp_path / "a")


def test_what_the_reference_does_not_cover_needs_the_float_model(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    model = parse("(float[2, 8] x) => (float y) { h = MatMul(x, w) y = Det(h) }", w=weight)
    artifact = qcompile.compile(model, "w8a8-dynamic", output=tmp_path / "a")
    with pytest.raises(UnsupportedError, match=r"the reference does not cover Det\. Give the float model"):
        qcompile.verify(artifact)
    found = qcompile.verify(artifact, against=model)
    assert "Det" in found.not_compared
    assert set(found.accuracy["cosine"]) == {"y"}


@pytest.mark.parametrize("recipe", ["w8a8-static", "w8a8-dynamic", "smoothquant-o2"])
def test_a_graph_without_quantizers_is_close_to_float(recipe: str) -> None:
    model = without_quantizers(qcompile.rewrite(network(), recipe, calibration=samples()))
    assert not {"QuantizeLinear", "DynamicQuantizeLinear", "QuantizeDequantizePerToken"} & {
        n.op_type for n in model.graph
    }
    engine = qcompile.backends.get("onnxruntime")
    exact, own = (engine.open_session(each).run(samples()[0])["x4"] for each in (network(), model))
    weights_only = np.sqrt(np.mean((exact - own) ** 2) / np.mean(exact**2))
    assert 0 < weights_only < 0.02
