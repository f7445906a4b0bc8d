"""The whole compiler on one page: front door, canonical form, the passes of the recipe, lowering, measurement."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.activation_ranges import Ranges
from qcompile.artifact import Artifact, check_output, write_artifact
from qcompile.backends import Backend, Lowered
from qcompile.calibration import Calibrator
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import padding_masks
from qcompile.canonical import canonical_passes
from qcompile.capability import check_data, check_recipe, for_target, integer_operators, wanted_operators
from qcompile.compile_requests import example_samples, first_sample, recipe_of
from qcompile.compile_selection import check_selection, ignored_layers
from qcompile.contract import Finding, Pass
from qcompile.errors import ModelError
from qcompile.outcome import build_report, measure, model_name
from qcompile.passes.observe_channels import ObserveChannels
from qcompile.pipeline import Log, Pipeline, Progress, apply_pass, name_of
from qcompile.recipe import Recipe
from qcompile.reference_evaluator import OutOfReachError
from qcompile.session import Feed
from qcompile.verify import synthetic_samples, usable_masks
from qcompile.verify_artifact import quantized_values, verification_sample, verify_artifact


def compile(
    model: Any,
    recipe: str | Path | Recipe = "w8a8-dynamic",
    *,
    backend: str = "onnxruntime",
    calibration: Any = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    ignore: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
    output: str | Path | None = None,
    target: str | None = None,
    verify: bool = True,
    trust_input: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a model to an artifact that runs on a backend.

    Args:
        model: torch.nn.Module, ExportedProgram, path (.onnx, .pt, .pth, .pt2), bytes, ModelProto or onnx_ir.Model.
        recipe: name, path of a YAML file (.yaml, .yml), or a Recipe.
        backend: "onnxruntime" or "openvino".
        calibration: samples in any form that `Calibration` names, or a Calibration; needed by static recipes, and by
            smoothing with a given alpha. A dynamic recipe without it leaves out what needs statistics, and the report
            says so.
        example_inputs: of a torch module, to trace it, by default the first calibration sample; also the sample for
            verification when there is no calibration.
        dynamic_shapes: of a torch module, as torch.export takes them; None: batch and sequence are dynamic.
        ignore: layers that stay float: names, or "re:" and a regular expression; see `ignored_layers`.
        targets: when not empty, the only layers that are quantized.
        output: folder to write; an artifact in it is replaced. None: a temporary folder.
        target: processor to compile for, see the backend's `targets`; None: one like this.
        verify: compare outputs after exact passes, and the artifact with a reference of its arithmetic; run it.
        trust_input: read files of PyTorch, which run code, and ONNX without limits; see `qcompile.frontend.trace`.
        progress: called with the name of a stage, which may come more than once, and the part of it that is done, 0 to
            1; None: silent. With a bar of rich, whose task has the total 1, as on the command line:
            `lambda stage, part: bar.update(task, description=stage, completed=part)`.

    Raises:
        QCompileError: with the node, input or setting, the reason and the mend.
    """
    engine = backends.get(backend)
    plan = for_target(recipe_of(recipe, ignore, targets), engine.targets, target)
    check_recipe(plan, engine)
    check_data(plan, calibration)
    if output is not None:
        check_output(output)
    work = _Work.of(model, calibration, example_inputs, dynamic_shapes, verify, trust_input, progress)
    check_selection(work.model, plan, lambda recipe: integer_operators(recipe, engine, target))
    original = work.model.clone()
    quantized = work.apply(plan, integer_operators(plan, engine, target))
    name = model_name(model, original.graph.name, output)
    ranges = work.ranges.found()
    report = build_report(original, plan, work.log, name=name, backend=backend, target=target, ranges=ranges)
    work.log.outputs.clear()  # logits over a vocabulary are large

    def write(folder: Path) -> Lowered:
        work.progress("lowering", 0.0)
        lowered = engine.lower(quantized, folder, target=target)
        path = folder / lowered.model_file
        if work.samples:
            work.progress("verifying", 0.0)
            sample = verification_sample(quantized, work.samples, work.pipeline.masks)
            probes = engine.probes(path, [value.names for value in quantized_values(quantized)])
            try:
                verify_artifact(quantized, original, lambda: engine.open_artifact(path), probes, sample)
            except OutOfReachError as error:
                reason = f"not compared with the reference of its arithmetic: {error}"
                report.findings.append(Finding("artifact", "kept", reason))
            work.progress("verifying", 1.0)
        for value in quantized.graph.initializers.values():
            value.const_value = None  # in the files now; measuring needs the room
        work.progress("measuring", 0.0)
        measure(report, engine, original, path, lowered, work.samples, work.pipeline.masks)
        if work.samples:
            report.accuracy["measured on"] = work.samples_are
        work.progress("measuring", 1.0)
        return lowered

    return write_artifact(
        None if output is None else Path(output),
        write,
        recipe=plan,
        backend=backend,
        target=target,
        inputs=quantized.graph.inputs,
        outputs=quantized.graph.outputs,
        calibration=work.calibration_hash,
        report=report,
    )


def rewrite(
    model: Any,
    recipe: str | Path | Recipe,
    *,
    calibration: Any = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    ignore: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
    target: str | None = None,
    verify: bool = True,
    trust_input: bool = False,
    progress: Progress | None = None,
) -> ir.Model:
    """Apply the passes of a recipe and return the portable quantized model.

    It is for any runtime, so nothing stays float because one of them has no integer kernel for it. The processor that
    it is for matters all the same: `target` is one of those of ONNX Runtime. Other arguments as in `compile`. Runtimes
    take liberties with it that `compile` guards against: ONNX Runtime quantizes a float convolution between two pairs,
    and refuses int8 activations (`smoothquant-o3`) that it has moved behind a Reshape or Transpose of known shape, for
    which `Recipe.from_name("smoothquant-o3", activations={"dtype": "uint8"})` has the same numbers. It is not the
    default because a zero point of 128 makes OpenVINO compute a ConvTranspose in float, in twice the time.
    """
    plan = for_target(recipe_of(recipe, ignore, targets), backends.get("onnxruntime").targets, target)
    check_data(plan, calibration)
    work = _Work.of(model, calibration, example_inputs, dynamic_shapes, verify, trust_input, progress)
    check_selection(work.model, plan, wanted_operators)
    return work.apply(plan)


def trace(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None, trust_input: bool = False) -> ir.Model:
    """Read a model through the door that fits it and bring it to canonical form; arguments as in `compile`."""
    traced = frontend.trace(
        model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, trust_input=trust_input
    )
    for item in canonical_passes(_runs(backends.get("onnxruntime"))):
        traced = apply_pass(item, traced).model
    return traced


@dataclasses.dataclass
class _Work:
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
    ) -> _Work:
        """Trace the model, bring it to canonical form and bind the calibration data to it."""
        report_progress = progress or (lambda _stage, _part: None)
        report_progress("tracing", 0.0)
        data = None if calibration is None else Calibration.of(calibration)
        model = frontend.open_model(model, trust_input=trust_input)
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
        canonical = pipeline.run(traced, canonical_passes(_runs(reference)), log, required=False)
        digest = calibrator.samples(canonical).fingerprint if calibrator is not None else None
        return cls(canonical, calibrator, samples, pipeline, log, report_progress, digest, ranges, kind)

    def apply(self, plan: Recipe, operators: frozenset[str] | None = None) -> ir.Model:
        """Run the passes of the recipe; `operators` are those that the backend computes in integers."""
        bound: dict[str, Any] = {"calibrator": self.calibrator, "ignore": ignored_layers(self.model, plan)}
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
            finding = Finding(name_of(item), "kept", f"{reason}: there is no calibration data")
            self.log.findings.setdefault(type(item).__name__, []).append(finding)
        return left


def _calibrator(calibration: Calibration, reference: Backend, progress: Progress, ranges: Ranges) -> Calibrator:
    def tell(done: int, total: int) -> None:
        progress("calibrating", done / max(total, 1))

    return Calibrator(calibration, ObserveChannels, reference.open_session, progress=tell, on_collect=ranges.collected)


def _samples(model: ir.Model, calibrator: Calibrator | None, example_inputs: Any) -> tuple[list[Feed], str]:
    """Return up to two inputs to verify on, and what they are: calibration samples, else the example, else made up."""
    if calibrator is not None:
        return list(itertools.islice(calibrator.samples(model), 2)), "calibration samples"
    if example_inputs is not None:
        return example_samples(model, example_inputs)
    return list(synthetic_samples(model)), "made-up inputs"


def _runs(reference: Backend) -> Callable[[ir.Model], bool]:
    """Return the question whether the reference runtime takes a model."""

    def runs(model: ir.Model) -> bool:
        try:
            reference.open_session(model, few_runs=True)
        except ModelError:
            return False
        return True

    return runs
