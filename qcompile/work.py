"""A model on its way through the compiler: in canonical form, with its data and the log of what happened to it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.activation_ranges import Ranges
from qcompile.backends import Backend
from qcompile.calibration import Calibrator
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import padding_masks
from qcompile.canonical import canonical_passes
from qcompile.compile_requests import cut_text, example_samples, first_sample
from qcompile.compile_selection import ignored_layers
from qcompile.contract import NO_DATA, Finding, Pass
from qcompile.errors import InputError, ModelError
from qcompile.finished_layers import FinishedLayers
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.pipeline import UNTOUCHED, Log, Pipeline, Progress, name_of
from qcompile.recipe import Recipe
from qcompile.session import Feed
from qcompile.verify import MADE_UP, synthetic_samples, usable_masks


@dataclasses.dataclass
class Work:
    """A model on its way: in canonical form, with its data and the log of what happened to it."""

    model: ir.Model
    calibrator: Calibrator | None
    samples: Sequence[Feed]
    pipeline: Pipeline
    log: Log
    progress: Progress
    calibration_hash: str | None
    ranges: Ranges
    samples_are: str
    started: float
    finished: FinishedLayers | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        calibration: Any,
        example_inputs: Any,
        dynamic_shapes: Any,
        verify: bool,
        trust_input: bool,
        progress: Progress | None,
    ) -> Work:
        """Trace the model, bring it to canonical form and bind the calibration data to it."""
        started = time.perf_counter()
        report_progress = progress or (lambda _stage, _part: None)
        report_progress("tracing", 0.0)
        data = None if calibration is None else cut_text(Calibration.of(calibration), model)
        given, model = model, frontend.open_model(model, trust_input=trust_input)
        if example_inputs is None and data is not None and hasattr(model, "forward"):
            example_inputs, data = first_sample(data, model)
        traced = frontend.trace(
            model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, trust_input=trust_input
        )
        report_progress("tracing", 1.0)
        reference = backends.get("onnxruntime")
        ranges = Ranges()
        calibrator = None if data is None else _calibrator(data, reference, report_progress, ranges)
        samples, kind = _samples(traced, calibrator, example_inputs) if verify else ([], "")
        masks = usable_masks(padding_masks(traced), samples) if calibrator is None else calibrator.masks(traced)
        open_session = functools.partial(reference.open_session, few_runs=True)
        pipeline = Pipeline(open_session, samples, masks, report_progress)
        log = Log()
        log.findings[UNTOUCHED] = _passed_over(traced)
        with _naming_made_up(kind), _called_as_given(given, traced):
            canonical = pipeline.run(traced, canonical_passes(runs_on(reference)), log, required=False)
        digest = calibrator.samples(canonical).fingerprint if calibrator is not None else None
        return cls(canonical, calibrator, samples, pipeline, log, report_progress, digest, ranges, kind, started)

    def apply(self, plan: Recipe, operators: frozenset[str] | None = None) -> ir.Model:
        """Run the passes of the recipe; `operators` are those that the backend computes in integers."""
        bound: dict[str, Any] = {"calibrator": self.calibrator, "ignore": ignored_layers(self.model, plan)}
        bound["finished"] = self.finished
        if operators is not None:
            bound["operators"] = operators
        passes: list[Pass] = [step.build(**bound) for step in plan.steps]
        if self.calibrator is None:
            passes = [left for item in passes if (left := self._without_calibration(item)) is not None]
        return self.pipeline.run(self.model, passes, self.log, required=True)

    def _without_calibration(self, item: Pass) -> Pass | None:
        """Return what runs in the place of a pass without calibration data, and write down what that changes."""
        left = item.without_calibration()
        if left != item:
            reason = "left out" if left is None else f"runs as {name_of(left)}"
            finding = Finding(name_of(item), "kept", f"{reason}: {NO_DATA}")
            self.log.findings.setdefault(type(item).__name__, []).append(finding)
        return left


def _calibrator(calibration: Calibration, reference: Backend, progress: Progress, ranges: Ranges) -> Calibrator:
    def tell(done: int, total: int) -> None:
        progress("calibrating", done / max(total, 1))

    return Calibrator(calibration, ObserveChannels, reference.open_session, progress=tell, on_collect=ranges.collected)


def _passed_over(traced: ir.Model) -> list[Finding]:
    """Say of weights in the files of a model that nothing reads them, as transformers' loader does."""
    names = traced.meta.get(frontend.PASSED_OVER) or []
    if not names:
        return []
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [Finding("files of the model", "kept", f"no parameter of the model takes these weights: {shown}")]


def _samples(model: ir.Model, calibrator: Calibrator | None, example_inputs: Any) -> tuple[list[Feed], str]:
    """Return up to two inputs to verify on, and what they are: calibration samples, else the example, else made up."""
    if calibrator is not None:
        return list(itertools.islice(calibrator.samples(model), 2)), "calibration samples"
    if example_inputs is not None:
        return example_samples(model, example_inputs)
    return list(synthetic_samples(model)), MADE_UP


@contextlib.contextmanager
def _naming_made_up(kind: str) -> Iterator[None]:
    """Say what to give where the model does not take inputs that nobody gave: dims of an image that are too small."""
    try:
        yield
    except InputError as error:
        if kind != MADE_UP:
            raise
        mend = "Give calibration data (-c) or example_inputs, or skip the verification: verify=False (--no-verify)"
        raise InputError(f"{MADE_UP}, {error.subject}", error.reason, mend) from error


@contextlib.contextmanager
def _called_as_given(given: Any, traced: ir.Model) -> Iterator[None]:
    """Call a model that the runtime refuses as the user does: by its file or its class, not by the graph's name."""
    try:
        yield
    except ModelError as error:
        file, module = isinstance(given, str | os.PathLike), hasattr(given, "forward")
        if error.subject != f"model {traced.graph.name or 'without a name'}" or not (file or module):
            raise
        subject = str(given) if file else f"model {type(given).__name__}"
        raise type(error)(subject, error.reason, error.mend) from error


def runs_on(reference: Backend) -> Callable[[ir.Model], bool]:
    """Return the question whether the reference runtime takes a model."""

    def runs(model: ir.Model) -> bool:
        try:
            reference.open_session(model, few_runs=True)
        except ModelError:
            return False
        return True

    return runs
