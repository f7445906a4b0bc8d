"""LLM.int8() on outliers planted into MiniLM's norms: its error, and what its float product costs in time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import qcompile
from benchmarks.encoder import error
from benchmarks.planted import compiled, prepared
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN, Run
from qcompile.backends.fx import lower
from qcompile.latency import interleaved_medians
from qcompile.models import texts
from qcompile.recipe import Recipe
from qcompile.session import Feed

INT8, SPLIT = Recipe.from_name("w8a8-dynamic"), Recipe.from_name("llm-int8")
AUTO = dataclasses.replace(Recipe.from_name("llm-int8", threshold="auto"), name="llm-int8, auto")
RECIPES = (INT8, SPLIT, AUTO)
TORCH = "torch.fx"
SECONDS = 30


def run(folder: Path) -> Benchmark:
    """Compile the model with and without planted outliers, compare the errors, and time the planted ones."""
    encoder, calibration = prepared(folder)
    feed = next(encoder.batches(texts.held_out_texts(1), batch=1))
    reference = OPEN["onnxruntime"](folder / "float.onnx")
    rows: list[Row] = []
    for runtime in (*OPEN, TORCH):
        runs = {
            (recipe.name, model): _opened(folder / f"{model}.onnx", recipe, runtime, calibration)
            for recipe in RECIPES
            for model in ("float", "planted")
        }
        planted = {recipe.name: functools.partial(runs[recipe.name, "planted"], feed) for recipe in RECIPES}
        times = {} if runtime == TORCH else interleaved_medians(planted, seconds=SECONDS)
        for recipe in RECIPES:
            errors = [error(encoder, runs[recipe.name, model], reference) for model in ("float", "planted")]
            row: dict[str, str | float] = {"runtime": runtime, "recipe": recipe.name}
            row |= {"as trained": errors[0], "planted": errors[1], "ms, planted": times.get(recipe.name, "")}
            rows.append(row)
    return Benchmark("LLM.int8() in all-MiniLM-L6-v2: error on held-out text", rows, _goals(rows))


def _opened(model: Path, recipe: Recipe, runtime: str, calibration: Sequence[Feed]) -> Run:
    if runtime != TORCH:
        return compiled(model, recipe, runtime, calibration)
    module = lower(qcompile.rewrite(model, recipe, calibration=calibration))

    def computed(feed: Feed) -> list[np.ndarray]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(np.asarray(feed[name])) for name in module.meta["input_names"]))
        return [tensor.numpy() for tensor in found.values()]

    return computed


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """The outliers cost nothing of the accuracy, and not much time."""

    def value(runtime: str, recipe: str, column: str) -> float:
        return float(next(row[column] for row in rows if (row["runtime"], row["recipe"]) == (runtime, recipe)))

    int8, split = INT8.name, SPLIT.name
    errors = [
        Goal(
            f"{runtime}, planted error of llm-int8 over that of w8a8-dynamic as trained",
            value(runtime, split, "planted") / value(runtime, int8, "as trained"),
            1.1,
            at_most=True,
        )
        for runtime in (*OPEN, TORCH)
    ]
    times = [
        Goal(
            f"{runtime}, time of llm-int8 over that of w8a8-dynamic",
            value(runtime, split, "ms, planted") / value(runtime, int8, "ms, planted"),
            1.2,
            at_most=True,
        )
        for runtime in OPEN
    ]
    return errors + times
