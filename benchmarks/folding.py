"""Twelve decoder architectures with random weights: which scales fold, and do they compile for both runtimes?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

import qcompile
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import OPEN
from qcompile import backends, channel_markers, channel_scales
from qcompile.channel_markers import Marker
from qcompile.channel_scales import Placement
from qcompile.errors import QCompileError
from qcompile.models.random_decoders import ARCHITECTURES, random_decoder, tokens
from qcompile.models.reference import dynamic_axes
from qcompile.recipe import Recipe
from qcompile.session import Feed

RECIPE, STATIC = "smoothquant-o3", "w8a8-static"
PRE_NORM_GATED = ("llama", "mistral", "qwen3", "gemma3_text")
NOT_HOMOGENEOUS = ("Gelu", "Tanh", "Erf")
"""Activations that no scale can be moved through: f(s * x) is not s * f(x) for any s but 1."""
KEEPS_CHANNELS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


def run(folder: Path) -> Benchmark:
    """Compile every architecture for both runtimes; logits of the folded float model against the original."""
    rows = [_row(architecture, folder / architecture) for architecture in ARCHITECTURES]
    explicit = max(float(row["explicit, foldable"]) for row in rows)
    gated = min(float(row["folded"]) for row in rows if row["architecture"] in PRE_NORM_GATED)
    change = max(float(row["logits changed by"]) for row in rows)
    static = [float(row[f"{STATIC}, {backend}"]) for row in rows for backend in OPEN]
    goals = [
        Goal("most explicit scales that the algebra could have folded, of any architecture", explicit, 0, at_most=True),
        Goal("fewest groups folded by a gated pre-norm decoder of 2 layers", gated, 8),
        Goal("largest change of logits by folding, in parts of their range", change, 1e-4, at_most=True),
        Goal(f"pairs of architecture and runtime that compile {STATIC}", sum(c > 0 for c in static), len(static)),
        Goal(f"lowest correlation of logits after {STATIC}, of any architecture and runtime", min(static), 0.99),
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
        row[f"{RECIPE}, {backend}"] = _correlation(module, artifact, example)
    folded = _folded(model, calibration)
    row["explicit, foldable"] = sum(_is_foldable(marker) for marker in channel_markers.find(folded))
    row["logits changed by"] = _folding_error(module, folded, example)
    for backend in OPEN:
        row[f"{STATIC}, {backend}"] = _static(module, model, calibration, example, backend, folder)
    return row


def _static(
    module: torch.nn.Module, model: ir.Model, calibration: Sequence[Feed], example: Feed, backend: str, folder: Path
) -> float:
    """Correlation of the logits after w8a8-static; 0 where it does not compile, so that the goals show it."""
    output = folder / f"{STATIC}-{backend}"
    try:
        artifact = qcompile.compile(model, STATIC, backend=backend, calibration=calibration, output=output)
    except QCompileError:
        logging.getLogger(__name__).exception("%s does not compile %s for %s", folder.name, STATIC, backend)
        return 0.0
    return _correlation(module, artifact, example)


def _correlation(module: torch.nn.Module, artifact: qcompile.Artifact, example: Feed) -> float:
    """Between the logits of the artifact and of the float module."""
    actual = next(iter(artifact.run(example).values()))
    return float(np.corrcoef(_logits(module, example).ravel(), actual.ravel())[0, 1])


def _folded(model: ir.Model, calibration: Sequence[Feed]) -> ir.Model:
    """The float model after smoothing and folding alone."""
    recipe = Recipe.from_name(RECIPE)
    steps = tuple(step for step in recipe.steps if step.pass_name in ("smooth_activations", "fold_scales"))
    return qcompile.rewrite(model, Recipe("folding only", steps), calibration=calibration)


def _is_foldable(marker: Marker) -> bool:
    """Whether a scale that stayed a Mul could have been folded.

    The solver may say so itself; where it refuses, only an activation in front that is not homogeneous excuses it.
    """
    if isinstance(channel_scales.solve(marker.x, marker.axis), Placement):
        return True
    producer = marker.x.producer()
    while producer is not None and producer.op_type in KEEPS_CHANNELS and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is None or producer.op_type not in NOT_HOMOGENEOUS


def _folding_error(module: torch.nn.Module, folded: ir.Model, example: Feed) -> float:
    """Largest change of a logit by smoothing and folding, in parts of the logits' range."""
    actual = backends.get("onnxruntime").open_session(folded).run(example)
    expected, valid = _logits(module, example), example["attention_mask"].astype(bool)
    return float(np.abs(next(iter(actual.values())) - expected)[valid].max() / np.ptp(expected))


def _logits(module: torch.nn.Module, feed: Feed) -> np.ndarray:
    with torch.no_grad():
        output = module(**{name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()})
    logits: np.ndarray = output["logits"].numpy()
    return logits
