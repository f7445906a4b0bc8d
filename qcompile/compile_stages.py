"""The stages of a compilation, behind the front door: each a step of `compile`, in its order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from qcompile import tuning
from qcompile.artifact import Artifact
from qcompile.artifact_portable import write_portable
from qcompile.artifact_writing import write_artifact
from qcompile.backends import Lowered, open_written
from qcompile.bits_per_weight import bits_per_weight
from qcompile.capability import integer_operators, unverified
from qcompile.compile_job import Job
from qcompile.compile_selection import check_selection
from qcompile.frontend.assets import write_assets
from qcompile.generation import generation_of
from qcompile.outcome import build_report, measure
from qcompile.recipe import Recipe
from qcompile.reference_evaluator import OutOfReachError
from qcompile.report import Report
from qcompile.report.data import MEASURED_ON
from qcompile.session import Feed, Session
from qcompile.verify import synthetic_samples
from qcompile.verify_artifact import verification_sample, verify_artifact
from qcompile.verify_observed import observed_values


def check_layers(job: Job) -> None:
    """Raise an error where the model has no layer that the recipe quantizes here, or the user leaves all out."""

    def operators(recipe: Recipe) -> frozenset[str]:
        return integer_operators(recipe, job.engine, job.target)

    check_selection(job.work.model, job.plan, operators)


def quantize(job: Job) -> None:
    """Run the passes of the recipe, each held to what it promises; layers that are faster in float are left out."""
    choice = tuning.choose(job.work, job.plan, job.engine, job.target, job.tune)
    job.plan = choice.applied(job.plan)
    operators = integer_operators(job.plan, job.engine, job.target)
    # Whoever runs a plain model holds the cache, in float32; rounding it each time would only take time.
    job.work.apply(job.plan, operators if job.output_format == "genai" else operators - {"Cache"})
    choice.explain(job.work.log)


def write(job: Job) -> Artifact:
    """Lower the model, verify and measure what the runtime makes of it, and put the folder in its place."""
    work, graph = job.work, job.work.model.graph
    report = build_report(
        job.original,
        job.plan,
        work.log,
        name=job.name,
        backend=job.engine.name,
        target=job.target,
        ranges=work.ranges.found(),
    )
    report.bits_per_weight = bits_per_weight(job.original, work.model)
    work.log.outputs.clear()  # logits over a vocabulary are large
    return write_artifact(
        job.output,
        functools.partial(_fill, job, report),
        recipe=job.plan,
        backend=job.engine.name,
        target=job.target,
        inputs=graph.inputs,
        outputs=graph.outputs,
        calibration=work.calibration_hash,
        report=report,
    )


def _fill(job: Job, report: Report, folder: Path) -> Lowered:
    """Write the model into a folder, run it there and complete the report."""
    work, engine = job.work, job.engine
    work.progress("lowering", 0.0)
    lowered = _lower(job, folder)
    if job.aot:
        lowered = _compile_ahead(job, folder, lowered)
    if work.samples:
        work.progress("verifying", 0.0)
        _verify(job, report, folder, lowered)
        work.progress("verifying", 1.0)
    else:
        report.not_compared = unverified(job.plan, job.target)
    for value in work.model.graph.initializers.values():
        value.const_value = None  # in the files now; measuring needs the room
    work.progress("measuring", 0.0)
    open_it = functools.partial(_open, job, folder, lowered)
    measure(report, engine, job.original, open_it, folder, lowered, work.samples, work.pipeline.masks)
    if work.samples:
        report.accuracy[MEASURED_ON] = work.samples_are
    work.progress("measuring", 1.0)
    return lowered


def _lower(job: Job, folder: Path) -> Lowered:
    if job.output_format == "model":
        return job.engine.lower(job.work.model, folder, target=job.target)
    assets = write_assets(job.source, folder)
    lowered = job.engine.lower_generator(job.work.model, folder, generation_of(folder))
    return dataclasses.replace(lowered, files=(*lowered.files, *assets))


def _open(job: Job, folder: Path, lowered: Lowered) -> Session:
    """Load what was written, as it will be run: the package, where there is one, which this process has made."""
    return open_written(job.engine, folder, lowered.model_file, lowered.package)


def _compile_ahead(job: Job, folder: Path, lowered: Lowered) -> Lowered:
    """Compile what was lowered to machine code."""
    compiler = job.engine.ahead_of_time
    assert compiler is not None  # `check_ahead` has asked
    job.work.progress("compiling ahead of time", 0.0)

    def samples() -> Iterator[Feed]:
        yield from job.work.samples[:1]
        yield from synthetic_samples(job.work.model)  # which not every model has

    return dataclasses.replace(lowered, package=compiler.compile(folder / lowered.model_file, samples()))


def _verify(job: Job, report: Report, folder: Path, lowered: Lowered) -> None:
    """Compare what the runtime computes with the reference of its arithmetic; keep what it takes to repeat that."""
    work, engine = job.work, job.engine
    sample = verification_sample(work.model, work.samples, work.pipeline.masks)
    probes = engine.probes(folder / lowered.model_file, observed_values(work.model))
    try:
        report.agreements = verify_artifact(
            work.model, job.original, functools.partial(_open, job, folder, lowered), probes, sample
        )
    except OutOfReachError as error:
        report.not_compared = str(error)
    write_portable(work.model, sample, folder, lowered.files)
