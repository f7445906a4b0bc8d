"""Outliers planted into MiniLM's norms: static INT8 collapses without smoothing and must not notice them with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

import qcompile
from benchmarks.encoder import CALIBRATION_SAMPLES, error, export
from benchmarks.recipes import without_smoothing
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN, Run
from qcompile.models import minilm, texts
from qcompile.models.planted import plant_outliers
from qcompile.recipe import Recipe
from qcompile.session import Feed

WITH, WITHOUT = Recipe.from_name("w8a8-static"), without_smoothing("w8a8-static")
RECIPES = (WITH, Recipe.from_name("smoothquant-o3"), WITHOUT)


def run(folder: Path) -> Benchmark:
    """Compile the model with and without planted outliers and compare the errors."""
    encoder, calibration = prepared(folder)
    rows = [_row(encoder, calibration, folder, backend, recipe) for backend in OPEN for recipe in RECIPES]
    return Benchmark("Planted outliers in all-MiniLM-L6-v2: error on held-out text", rows, _goals(rows))


def prepared(folder: Path) -> tuple[minilm.SentenceEncoder, list[Feed]]:
    """Write float.onnx and planted.onnx, and return the encoder and calibration data."""
    encoder = minilm.load()
    model = ir.load(export(encoder, folder / "float.onnx", 23))
    plant_outliers(model, seed=0)
    ir.save(model, folder / "planted.onnx", external_data="planted.onnx.data")
    return encoder, list(encoder.batches(texts.calibration_texts(CALIBRATION_SAMPLES)))


def _row(
    encoder: minilm.SentenceEncoder, calibration: Sequence[Feed], folder: Path, backend: str, recipe: Recipe
) -> Row:
    reference = OPEN[backend](folder / "float.onnx")
    errors = [
        error(encoder, compiled(folder / name, recipe, backend, calibration), reference)
        for name in ("float.onnx", "planted.onnx")
    ]
    return {"runtime": backend, "recipe": recipe.name, "as trained": errors[0], "planted": errors[1]}


def compiled(model: Path, recipe: Recipe, backend: str, calibration: Sequence[Feed]) -> Run:
    """Compile a file of a model beside it and open the artifact in the plain runtime."""
    output = model.with_suffix("") / f"{recipe.name.replace(', ', '-').replace(' ', '-')}-{backend}"
    output.parent.mkdir(exist_ok=True)
    artifact = qcompile.compile(model, recipe, backend=backend, calibration=calibration, output=output)
    return OPEN[backend](artifact.model_path)


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """Smoothing makes up for the outliers, and it is smoothing that does: the same recipe without it collapses."""
    planted = {(row["runtime"], row["recipe"]): float(row["planted"]) for row in rows}
    as_trained = {(row["runtime"], row["recipe"]): float(row["as trained"]) for row in rows}
    held = [
        Goal(f"{backend} {recipe}, planted error over its own", error / as_trained[backend, recipe], 1.5, at_most=True)
        for (backend, recipe), error in planted.items()
        if recipe != WITHOUT.name
    ]
    collapsed = [
        Goal(
            f"{backend}, planted error without smoothing over that with it",
            planted[backend, WITHOUT.name] / planted[backend, WITH.name],
            5,
        )
        for backend in dict.fromkeys(row["runtime"] for row in rows)
    ]
    return held + collapsed
