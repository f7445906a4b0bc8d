"""What tests and benchmarks need of a reference model: the model, samples to calibrate on, and others to judge by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Feed = dict[str, np.ndarray]
DynamicShapes = dict[str, dict[int, Any]]


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """A classifier and its data.

    Attributes:
        model: what `qcompile.compile` takes: a module in eval mode, or the path of an .onnx file.
        example: one feed for tracing.
        calibration: feeds to calibrate on.
        held_out: feeds to measure on; none of them is in `calibration`.
        dynamic_shapes: axes that may change, in torch.export's form; None for an .onnx file.
        validation: feeds on which a budget of accuracy may be held; none of them is in the others.
    """

    model: torch.nn.Module | Path
    example: Feed
    calibration: Sequence[Feed]
    held_out: Sequence[Feed]
    dynamic_shapes: DynamicShapes | None = None
    validation: Sequence[Feed] = ()


def dynamic_axes(feed: Mapping[str, np.ndarray], axes: Sequence[int] = (0, 1)) -> DynamicShapes:
    """Mark the same axes of every input as dynamic, in the form that torch.export takes."""
    return {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name in feed}


def top1(scores: np.ndarray) -> np.ndarray:
    """Index of the highest score along the last axis: shape [..., classes] to int64 [...]."""
    return np.asarray(np.argmax(scores, axis=-1))
