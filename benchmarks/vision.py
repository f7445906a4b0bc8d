"""Convolutional and small models: does the most likely class stay the same in INT8?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import qcompile
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN, Run, size_in_mb
from qcompile.latency import interleaved_medians
from qcompile.models import crepe, efficientnet_lite, magika, ppocr
from qcompile.models.reference import ReferenceModel, top1

LOADERS: dict[str, Callable[[], ReferenceModel]] = {
    "EfficientNet-Lite0": efficientnet_lite.load,
    "PP-OCRv4 recognition": ppocr.load,
    "magika": magika.load,
    "CREPE": crepe.load,
}
RECIPE = "w8a8-static"


def run(folder: Path) -> Benchmark:
    """Compile each model for both runtimes; agreement of top-1 with float on samples that nothing was calibrated on."""
    rows = [row for name, load in LOADERS.items() for row in _rows(name, load(), folder / name.replace(" ", "-"))]
    goals = [
        Goal(f"{row['model']}, {row['runtime']}, top-1 agreement", float(row["top-1 agreement"]), 0.97) for row in rows
    ]
    return Benchmark(f"{RECIPE}: top-1 agreement with float on held-out samples, batch 1", rows, goals)


def _rows(name: str, reference: ReferenceModel, folder: Path) -> list[Row]:
    folder.mkdir()
    path = _float_model(reference, folder / "float.onnx")
    rows: list[Row] = []
    for backend, open_file in OPEN.items():
        artifact = qcompile.compile(
            path, RECIPE, backend=backend, calibration=reference.calibration, output=folder / backend
        )
        runs = {"float": open_file(path), "int8": open_file(artifact.model_path)}
        feed = reference.held_out[0]
        times = interleaved_medians({key: functools.partial(run, feed) for key, run in runs.items()}, seconds=5)
        rows.append(
            {
                "model": name,
                "runtime": backend,
                "top-1 agreement": _agreement(runs["float"], runs["int8"], reference),
                "kept float": sum(layer.action == "kept" for layer in artifact.report.layers),
                "MB float": size_in_mb(path),
                "MB": size_in_mb(artifact.model_path),
                "ms float": times["float"],
                "ms": times["int8"],
            }
        )
    return rows


def _agreement(expected: Run, actual: Run, reference: ReferenceModel) -> float:
    same = [top1(expected(feed)[0]) == top1(actual(feed)[0]) for feed in reference.held_out]
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
