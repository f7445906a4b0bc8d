"""Convolutional and small models: does the most likely class stay the same in INT8?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx.version_converter
import torch

import qcompile
from benchmarks import peers
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN, Run, size_in_mb
from qcompile.accuracy_budget import AccuracyBudget
from qcompile.latency import interleaved_medians
from qcompile.models import crepe, efficientnet_lite, magika, ppocr
from qcompile.models.reference import Feed, ReferenceModel, top1

LOADERS: dict[str, Callable[[], ReferenceModel]] = {
    "EfficientNet-Lite0": efficientnet_lite.load,
    "PP-OCRv4 recognition": ppocr.load,
    "magika": magika.load,
    "CREPE": crepe.load,
}
RECIPE = "w8a8-static"
Candidate = tuple[str, str, Path, str]
"""Runtime, method, model file, layers kept float."""
OURS = f"qcompile {RECIPE}"
MAX_DROP = 0.01
"""Of the agreement with float, that a budget allows on its own samples; smaller than the goal, which is on others."""
WITH_BUDGET = f"{OURS}, max_drop {MAX_DROP}"


def run(folder: Path) -> Benchmark:
    """Quantize each model for both runtimes; agreement of top-1 with float on samples that none was calibrated on."""
    rows = [row for name, load in LOADERS.items() for row in _rows(name, load(), folder / name.replace(" ", "-"))]
    goals = [
        Goal(f"{row['model']}, {row['runtime']}, top-1 agreement, {row['method']}", float(row["top-1 agreement"]), 0.97)
        for row in rows
        if str(row["method"]).startswith(OURS)
    ]
    return Benchmark("Top-1 agreement with float on held-out samples, batch 1", rows, goals)


def _rows(name: str, reference: ReferenceModel, folder: Path) -> list[Row]:
    folder.mkdir()
    path = _float_model(reference, folder / "float.onnx")
    candidates: list[Candidate] = [
        ("onnxruntime", "float", path, ""),
        ("onnxruntime", *_quantize_static(path, folder, reference), ""),
        *_all_ours(path, folder, reference, "onnxruntime"),
        ("openvino", "float", path, ""),
        ("openvino", "nncf.quantize", _nncf(path, folder, reference), ""),
        *_all_ours(path, folder, reference, "openvino"),
    ]
    runs = {f"{runtime}\n{method}": OPEN[runtime](file) for runtime, method, file, _ in candidates}
    feed = reference.held_out[0]
    times = interleaved_medians({key: functools.partial(run, feed) for key, run in runs.items()}, seconds=15)
    expected = {runtime: [run(feed)[0] for feed in reference.held_out] for runtime, run in _floats(runs)}
    return [
        {
            "model": name,
            "runtime": runtime,
            "method": method,
            "top-1 agreement": _agreement(expected[runtime], runs[f"{runtime}\n{method}"], reference),
            "kept float": kept,
            "MB": size_in_mb(file),
            "ms": times[f"{runtime}\n{method}"],
        }
        for runtime, method, file, kept in candidates
    ]


def _floats(runs: Mapping[str, Run]) -> list[tuple[str, Run]]:
    return [(key.split("\n")[0], run) for key, run in runs.items() if key.endswith("\nfloat")]


def _all_ours(path: Path, folder: Path, reference: ReferenceModel, backend: str) -> list[Candidate]:
    """Return our artifact, and where there are samples to validate on, the one that holds a budget."""
    found = [(backend, OURS, *_ours(path, folder / backend, reference, backend, None))]
    if reference.validation:
        run = OPEN[backend](path)
        expected = [top1(run(feed)[0]) for feed in reference.validation]

        def agreement(run: Callable[[Feed], Mapping[str, np.ndarray]]) -> float:
            found = [top1(next(iter(run(feed).values()))) for feed in reference.validation]
            return float(np.mean(np.ravel(found) == np.ravel(expected)))

        budget = AccuracyBudget(MAX_DROP, agreement)
        found.append((backend, WITH_BUDGET, *_ours(path, folder / f"{backend}-budget", reference, backend, budget)))
    return found


def _ours(
    path: Path, folder: Path, reference: ReferenceModel, backend: str, budget: AccuracyBudget | None
) -> tuple[Path, str]:
    artifact = qcompile.compile(
        path, RECIPE, backend=backend, calibration=reference.calibration, output=folder, accuracy=budget
    )
    kept = [layer for layer in artifact.report.layers if layer.action == "kept"]
    return artifact.model_path, f"{len(kept)} of {len(artifact.report.layers)}"


def _quantize_static(path: Path, folder: Path, reference: ReferenceModel) -> tuple[str, Path]:
    # Scales per channel need opset 13, which onnxruntime's quantizer does not see to.
    model = onnx.load(path)
    if model.opset_import[0].version < 13:
        path = folder / "opset13.onnx"
        onnx.save(onnx.version_converter.convert_version(model, 13), path)
    output = folder / "quantize_static.onnx"
    try:
        return "quantize_static", peers.onnxruntime_static(path, output, reference.calibration)
    except ValueError:  # onnxruntime 1.31 fails on some biases next to scales per channel
        peer = peers.onnxruntime_static(path, output, reference.calibration, per_channel=False)
        return "quantize_static, per tensor", peer


def _nncf(path: Path, folder: Path, reference: ReferenceModel) -> Path:
    return peers.nncf_static(path, folder / "nncf.xml", reference.calibration, transformer=False)


def _agreement(expected: Sequence[np.ndarray], actual: Run, reference: ReferenceModel) -> float:
    same = [top1(before) == top1(actual(feed)[0]) for before, feed in zip(expected, reference.held_out, strict=True)]
    return float(np.concatenate([np.ravel(part) for part in same]).mean())


def _float_model(reference: ReferenceModel, path: Path) -> Path:
    if isinstance(reference.model, Path):
        return reference.model
    example = tuple(torch.from_numpy(array) for array in reference.example.values())
    shapes = reference.dynamic_shapes
    program = torch.onnx.export(
        reference.model, example, dynamo=True, opset_version=23, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(path)
    return path
