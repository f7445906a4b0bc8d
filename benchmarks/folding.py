"""Twelve decoder architectures with random weights: which scales fold, and do they compile for both runtimes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

import qcompile
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN
from qcompile import backends
from qcompile.models.random_decoders import ARCHITECTURES, random_decoder, tokens
from qcompile.models.reference import dynamic_axes
from qcompile.recipe import Recipe
from qcompile.session import Feed

RECIPE = "smoothquant-o3"
PRE_NORM_GATED = ("llama", "mistral", "qwen3", "gemma3_text")
NOT_FOLDABLE = ("Gelu", "Tanh", "Erf")
"""Activations that are not homogeneous: no scale can be moved through them."""


def run(folder: Path) -> Benchmark:
    """Compile every architecture for both runtimes; logits of the folded float model against the original."""
    rows = [_row(architecture, folder / architecture) for architecture in ARCHITECTURES]
    explicit = max(float(row["explicit, foldable"]) for row in rows)
    gated = min(float(row["folded"]) for row in rows if row["architecture"] in PRE_NORM_GATED)
    change = max(float(row["logits changed by"]) for row in rows)
    goals = [
        Goal("most explicit scales that the algebra could have folded, of any architecture", explicit, 0, at_most=True),
        Goal("fewest groups folded by a gated pre-norm decoder of 2 layers", gated, 8),
        Goal("largest change of logits by folding, in parts of their range", change, 1e-4, at_most=True),
    ]
    return Benchmark("Channel scales of random decoders of 2 layers", rows, goals)


def _row(architecture: str, folder: Path) -> Row:
    folder.mkdir()
    module, example = random_decoder(architecture)
    model = qcompile.trace(module, example_inputs=example, dynamic_shapes=dynamic_axes(example))
    calibration = [tokens(2, 32, seed=seed) for seed in range(1, 5)]
    row: dict[str, str | float] = {"architecture": architecture}
    for backend in OPEN:
        artifact = qcompile.compile(model, RECIPE, backend=backend, calibration=calibration, output=folder / backend)
        row |= artifact.report.channel_scales
        reasons = [f.reason for f in artifact.report.findings if f.action == "explicit"]
        row["explicit, foldable"] = sum(not any(name in reason for name in NOT_FOLDABLE) for reason in reasons)
        agreement = np.corrcoef(_logits(module, example).ravel(), next(iter(artifact.run(example).values())).ravel())
        row[f"correlation, {backend}"] = float(agreement[0, 1])
    row["logits changed by"] = _folding_error(module, model, calibration, example)
    return row


def _folding_error(module: torch.nn.Module, model: ir.Model, calibration: Sequence[Feed], example: Feed) -> float:
    """Largest change of a logit by smoothing and folding alone, in parts of the logits' range."""
    recipe = Recipe.from_name(RECIPE)
    steps = tuple(step for step in recipe.steps if step.pass_name in ("smooth_activations", "fold_scales"))
    folded = qcompile.rewrite(model, Recipe("folding only", steps), calibration=calibration)
    actual = backends.get("onnxruntime").open_session(folded).run(example)
    expected, valid = _logits(module, example), example["attention_mask"].astype(bool)
    return float(np.abs(next(iter(actual.values())) - expected)[valid].max() / np.ptp(expected))


def _logits(module: torch.nn.Module, feed: Feed) -> np.ndarray:
    with torch.no_grad():
        output = module(**{name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()})
    logits: np.ndarray = output["logits"].numpy()
    return logits
