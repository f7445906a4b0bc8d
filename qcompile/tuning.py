"""Which layers stay float because they are faster so: measured on this processor, at the shapes of a real run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from qcompile import processor
from qcompile.backends import Backend
from qcompile.capability import quantizers
from qcompile.errors import RecipeError
from qcompile.layers import accumulated, operator
from qcompile.manifest import versions
from qcompile.pipeline import Log
from qcompile.recipe import Recipe
from qcompile.recipe_patterns import exactly
from qcompile.recipe_settings import mend
from qcompile.tuning_cache import TuningCache, folder
from qcompile.tuning_candidates import Measurement, quantized_layers
from qcompile.tuning_groups import groups_of
from qcompile.tuning_sets import picked, reasons
from qcompile.tuning_times import INTEGER, Timer
from qcompile.work import Work

WAYS = ("measure", "table", "none")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Layers that stay float because they are faster so: name -> what was measured, for the report."""

    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def applied(self, plan: Recipe) -> Recipe:
        """Return the recipe that leaves these layers out: with it, and without tuning, the same artifact comes out."""
        return plan.override(ignore=(*plan.ignore, *map(exactly, self.kept)))

    def explain(self, log: Log) -> None:
        """Let the log say why these layers were left out: not because the user wants it."""
        for findings in log.findings.values():
            for index, finding in enumerate(findings):
                if finding.action == "ignored" and finding.layer in self.kept:
                    findings[index] = dataclasses.replace(finding, action="kept", reason=self.kept[finding.layer])


def check_way(tune: str) -> None:
    """Raise RecipeError when there is no such way to tune."""
    if tune not in WAYS:
        raise RecipeError(f"tune {tune!r}", "there is no such way", mend(str(tune), WAYS))


def choose(work: Work, plan: Recipe, engine: Backend, target: str | None, tune: str) -> Choice:
    """Return the layers of the recipe that stay float because they, or the whole model, are faster so.

    Nothing for recipes that quantize layers in more than one pass, and measured only where there is something to run:
    not with `verify=False`.

    Args:
        work: the float model in canonical form, and samples.
        plan: the recipe.
        engine: the backend.
        target: processor that is compiled for, or None; for one that this is not the table counts.
        tune: "measure"; "table": by what the backend knows from other processors, which takes no time; "none".
    """
    if tune == "none" or len(quantizers(plan)) != 1:
        return Choice()
    if tune == "table" or (target is not None and not processor.runs_target(target)):
        return Choice(_of_table(work.model, plan, engine, target))
    return Choice(_measured(work, plan, engine, target)) if work.samples else Choice()


def _measured(work: Work, plan: Recipe, engine: Backend, target: str | None) -> dict[str, str]:
    work.progress("tuning", 0.0)
    runtime = f"{engine.name} {versions(engine.name).get(engine.name, '')}"
    cache = TuningCache(folder(), f"{runtime}, {target or 'any target'}, {processor.identity()}")
    measurement = Measurement(work, plan, Timer(engine, target), cache)
    candidates = measurement.candidates()
    work.progress("tuning", 0.5)
    times = measurement.whole(candidates) if candidates else {}
    work.progress("tuning", 1.0)
    name = picked(candidates, times)
    return {} if name == INTEGER else reasons(candidates[name], times[name], times[INTEGER], processor.name())


def _of_table(model: ir.Model, plan: Recipe, engine: Backend, target: str | None) -> dict[str, str]:
    """Return the layers that are slow in integers by the table of the backend: of a name that several have, all are."""
    (quantizer,) = quantizers(plan)
    chosen = quantized_layers(model, plan, engine, target)
    shapes: dict[str, tuple[int, ...]] = {str(layer.x.name): () for layer in chosen}
    slow: dict[str, bool] = {}
    for layer, group in groups_of(chosen, quantizer.activations, shapes):
        listed = any(
            row.operator == operator(layer) and accumulated(layer) <= row.most_products
            for row in engine.slow_in_integers
        )
        slow[layer.name] = slow.get(layer.name, True) and listed and group.reads == "float"
    reason = f"float is faster by the table of {engine.name}, which was measured on another processor"
    return {name: reason for name, found in slow.items() if found}
