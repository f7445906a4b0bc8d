"""One compilation on its way: what was asked for, and what the model has become."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile.accuracy_budget import AccuracyBudget
from qcompile.backends import Backend
from qcompile.recipe import Recipe
from qcompile.work import Work


@dataclasses.dataclass
class Job:
    """What the stages of a compilation share; each of them changes `work` or `plan`.

    Attributes:
        work: the model as it is now, its data, and the log of what happened to it.
        original: the float model in canonical form.
        name: of the model, for the report.
        plan: the recipe; tuning and the budget add to the layers that it leaves float.
        engine: the backend.
        target: processor to compile for, or None.
        tune: how layers that are faster in float are found.
        budget: how much accuracy may be lost; None: nobody asks.
        output: folder to write; None: a temporary one.
        source: the model as the user gave it.
        output_format: see `compile`.
        aot: see `compile`.
    """

    work: Work
    original: ir.Model
    name: str
    plan: Recipe
    engine: Backend
    target: str | None
    tune: str
    budget: AccuracyBudget | None
    output: Path | None
    source: Any
    output_format: str
    aot: bool
