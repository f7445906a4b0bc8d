"""Which layers cost most, and which have to stay float so that a budget of accuracy holds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile.accuracy_budget import AccuracyBudget, Metric, Run, score
from qcompile.backends import Backend
from qcompile.calibration_masks import PaddingMask
from qcompile.compile_job import Job
from qcompile.errors import RecipeError
from qcompile.initializers import data_bytes
from qcompile.outputs import Outputs, farthest_cosine, without_padding
from qcompile.recipe import Recipe
from qcompile.recipe_patterns import exactly
from qcompile.report.budget import BudgetReport
from qcompile.restoring import restored, shared_weights
from qcompile.session import Feed, Session
from qcompile.solvers.fewest_kept import Units, fewest_kept
from qcompile.verify import difference, outputs_of, run_all
from qcompile.verify_gains import output_gains
from qcompile.verify_layers import accumulated_errors, layer_outputs, output_names
from qcompile.work import Work

WEIGHED = 5
"""How many layers are put back to float one at a time, to see what it brings: those with the largest own error."""

WEIGHING_SHARE = 0.1
"""Part of the time that the compilation has taken until then that this may take."""

MOST_RANKED = 64
"""How many layers, those with the largest own error, are put back one at a time to rank them for a budget.

A number, and no time, so that the same layers stay float on a slow machine.
"""

_WEIGHED_BYTES = 2**28
"""Float weights of the largest model of which layers are weighed: of larger ones it would be what takes most memory."""

_AGREEMENT_SAMPLES = 8
_AGREEMENT_BYTES = 64 * 2**20
"""Outputs of the float model that are held to compare with: logits over a vocabulary are large."""

KEPT_REASON = "it stays float for the accuracy budget"

_STAGE = "holding the accuracy budget"


def budget_of(accuracy: AccuracyBudget | Mapping[str, Any] | None, plan: Recipe) -> AccuracyBudget | None:
    """Return the budget; raises RecipeError where it is not valid, or no layer of this recipe can be put back."""
    budget = AccuracyBudget.of(accuracy)
    if budget is not None and not _quantizes_last(plan):
        reason = f"{plan.name} has exact passes behind those that quantize, so layers cannot be put back to float"
        raise RecipeError("accuracy", reason, "Put the passes that quantize last, or leave layers out by ignore")
    return budget


def weigh_layers(job: Job) -> None:
    """Write into the log what it would bring to leave each of the worst layers in float, as far as time allows.

    Nothing without samples, where exact passes come behind those that quantize, and for a model that is too large.
    """
    work = job.work
    losses, before = _losses(work), work.log.before_loss
    if not work.samples or not losses or before is None or not _quantizes_last(job.plan):
        return
    if data_bytes(before) > _WEIGHED_BYTES:
        return
    worst = [frozenset({name}) for name in sorted(losses, key=losses.__getitem__)[:WEIGHED]]
    seconds = WEIGHING_SHARE * (time.perf_counter() - work.started)
    gains = _gains(work.model, before, worst, work, work.samples, seconds)
    work.log.gains = {name: gain for layers, gain in gains.items() for name in layers}


def hold_budget(job: Job) -> None:
    """Put as few layers back to float as the budget asks for, and let the recipe ignore these; without one, none.

    Each trial is lowered and measured on the runtime, and not verified or timed: what is found will be. Layers are put
    back as they were in front of the passes that quantize, so smoothing is not decided again without them.

    Raises:
        RecipeError: there is no data for the default metric, or the metric is not one.
    """
    budget, work, quantized = job.budget, job.work, job.work.model
    if budget is None:
        return
    begin = time.perf_counter()
    work.progress(_STAGE, 0.0)
    metric, words, float_score = _float_score(budget, job.engine.open_session(job.original), work)
    losses, before = _losses(work), work.log.before_loss or quantized
    trials = _Trials(
        quantized, before, metric, job.engine, job.target, lambda done: work.progress(_STAGE, done / budget.max_trials)
    )
    lowest = budget.lowest(float_score)
    units = shared_weights(before, losses)
    if units and not trials.score(frozenset()) >= lowest:
        units = _ranked(units, quantized, before, losses, work)

    def names(kept: Units) -> frozenset[str]:
        return frozenset[str]().union(*(units[place] for place in kept))

    found = fewest_kept(
        len(units),
        lambda kept: trials.score(names(kept)),
        lowest=lowest,
        max_trials=budget.max_trials,
    )
    layers = [name for name in losses if name in names(found.kept)]
    work.model = trials.model(layers)
    job.plan = job.plan.override(ignore=(*job.plan.ignore, *map(exactly, layers)))
    _write_down(work, before, layers)
    work.log.budget = BudgetReport(
        metric=words,
        max_drop=budget.max_drop,
        drop_type=budget.drop_type,
        float_score=float_score,
        quantized_score=trials.scores.get(frozenset()),
        score=found.score,
        met=found.holds,
        kept=tuple(layers),
        trials=found.trials,
        seconds=time.perf_counter() - begin,
        complete=found.complete,
    )
    work.progress(_STAGE, 1.0)


class _Trials:
    """Artifacts with some layers back in float: each is lowered, measured once and thrown away."""

    def __init__(
        self,
        quantized: ir.Model,
        before: ir.Model,
        metric: Metric,
        engine: Backend,
        target: str | None,
        progress: Callable[[int], None],
    ) -> None:
        self.scores: dict[frozenset[str], float] = {}
        self._quantized, self._before = quantized, before
        self._metric, self._engine, self._target = metric, engine, target
        self._progress = progress

    def model(self, layers: Collection[str]) -> ir.Model:
        """Return the model with these layers in float."""
        return restored(self._quantized, self._before, layers) if layers else self._quantized

    def score(self, layers: frozenset[str]) -> float:
        """Return what the metric finds with these layers in float."""
        if layers not in self.scores:
            self._progress(len(self.scores))
            with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
                lowered = self._engine.lower(self.model(layers), Path(folder), target=self._target)
                run = self._engine.open_artifact(Path(folder) / lowered.model_file).run
                self.scores[layers] = score(self._metric, run)
        return self.scores[layers]


def _float_score(budget: AccuracyBudget, session: Session, work: Work) -> tuple[Metric, str, float]:
    """Return the metric, its name, and what it finds for the float model."""
    metric, words = _metric(budget, session, work)
    found = score(metric, session.run)
    if not math.isfinite(found):
        raise RecipeError("metric", f"it is {found} for the float model", "Return a finite number")
    return metric, words, found


def _quantizes_last(plan: Recipe) -> bool:
    """True where no exact pass comes behind one that quantizes."""
    promises = [step.build().keeps for step in plan.steps]
    return promises == sorted(promises)  # "exact" comes before "lossy"


def _losses(work: Work) -> dict[str, float]:
    """Return layer -> SQNR in dB of it alone, of the layers that are quantized; infinite where it was not measured."""
    found = [each for findings in work.log.findings.values() for each in findings if each.action == "quantized"]
    return {each.layer: math.inf if each.sqnr_db is None else each.sqnr_db for each in found}


def _ranked(
    units: Sequence[frozenset[str]], quantized: ir.Model, before: ir.Model, losses: Mapping[str, float], work: Work
) -> list[frozenset[str]]:
    """Return groups of layers, that first which brings most when it is put back to float.

    Behind those that were measured, at most MOST_RANKED, the others by their own error.
    """
    by_loss = sorted(units, key=lambda unit: min(losses[name] for name in unit))
    samples = work.samples or _first_samples(work, 2)
    gains = _gains(quantized, before, by_loss[:MOST_RANKED], work, samples, math.inf) if samples else {}
    return sorted(by_loss, key=lambda unit: -gains[unit] if unit in gains else math.inf)


def _gains(
    quantized: ir.Model,
    before: ir.Model,
    units: Sequence[frozenset[str]],
    work: Work,
    samples: Sequence[Feed],
    seconds: float,
) -> dict[frozenset[str], float]:
    pipeline = work.pipeline
    return output_gains(quantized, before, units, samples, pipeline.masks, pipeline.open_session, seconds=seconds)


def _first_samples(work: Work, count: int) -> list[Feed]:
    return [] if work.calibrator is None else list(itertools.islice(work.calibrator.samples(work.model), count))


def _metric(budget: AccuracyBudget, session: Session, work: Work) -> tuple[Metric, str]:
    """Return the metric and its name; without one of the user, the agreement with the outputs of the float session."""
    if budget.metric is not None:
        name = getattr(budget.metric, "__name__", "metric")
        return budget.metric, name if name.isidentifier() else "metric"
    samples = _first_samples(work, _AGREEMENT_SAMPLES) or list(work.samples)
    if not samples:
        reason = "there are no inputs on which outputs could be compared"
        raise RecipeError("accuracy", reason, "Give calibration data, example inputs or a metric")
    exact: list[dict[str, np.ndarray]] = []
    for sample in samples:
        exact += run_all(session, [sample])
        if sum(array.nbytes for outputs in exact for array in outputs.values()) > _AGREEMENT_BYTES:
            break
    return functools.partial(_agreement, exact, samples[: len(exact)], work.pipeline.masks), "cosine to float"


def _agreement(exact: Outputs, samples: Sequence[Feed], masks: Sequence[PaddingMask], run: Run) -> float:
    """Return the mean cosine to the outputs of the float model, of the output that is farthest from it."""
    sides = (without_padding(side, samples, masks) for side in (exact, [run(sample) for sample in samples]))
    return farthest_cosine(*sides)


def _write_down(work: Work, before: ir.Model, layers: Collection[str]) -> None:
    """Let the log say that layers are float, and what error has come together in the model as it is now."""
    log = work.log
    for name, findings in log.findings.items():
        log.findings[name] = [
            dataclasses.replace(each, action="kept", reason=KEPT_REASON, sqnr_db=None)
            if each.action == "quantized" and each.layer in layers
            else each
            for each in findings
        ]
    if layers and log.accumulated:
        names = output_names(before)
        sides = [
            layer_outputs(each, names, work.samples[0], work.pipeline.masks, work.pipeline.open_session)
            for each in (before, work.model)
        ]
        log.accumulated = accumulated_errors(*sides)
        _measure_passes(work, before)


def _measure_passes(work: Work, before: ir.Model) -> None:
    """Let the last pass that quantizes have the error of the model as it is now; what each added is not known."""
    pipeline, log = work.pipeline, work.log
    sides = (outputs_of(each, work.samples, pipeline.open_session) for each in (before, work.model))
    found = difference(*(without_padding(side, work.samples, pipeline.masks) for side in sides))
    lossy = [index for index, entry in enumerate(log.passes) if entry.sqnr_db is not None]
    for index in lossy:
        ratio = found.sqnr_db if index == lossy[-1] else None
        log.passes[index] = dataclasses.replace(log.passes[index], sqnr_db=ratio)
