"""The whole compiler on one page: the front door, canonical form, the stages of a compilation, the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.accuracy_budget import AccuracyBudget
from qcompile.artifact import Artifact, absolute
from qcompile.artifact_stage import behind_link
from qcompile.artifact_writing import sole_writer
from qcompile.canonical import canonical_passes
from qcompile.capability import check_data, check_recipe, check_source, for_target, wanted_operators
from qcompile.compile_accuracy import budget_of, hold_budget, weigh_layers
from qcompile.compile_job import Job
from qcompile.compile_requests import check_ahead, check_arguments, format_of, recipe_of
from qcompile.compile_selection import check_selection
from qcompile.compile_stages import check_layers, quantize, write
from qcompile.disk_room import room_for_temporary_files
from qcompile.finished_layers import layers_beside
from qcompile.outcome import model_name
from qcompile.pipeline import Progress, apply_pass
from qcompile.recipe import Recipe
from qcompile.tuning import check_way
from qcompile.work import Work, runs_on

STAGES = (
    check_layers,  # is there a layer that the recipe quantizes, and that the user does not leave out?
    quantize,  # the passes of the recipe, each held to what it promises, but for layers that are faster in float
    hold_budget,  # as few layers as possible go back to float, until the budget of accuracy holds
    weigh_layers,  # what would leaving out each of the worst layers bring?
)
"""What happens between the canonical form of a model and the writing of its artifact, in this order."""


@room_for_temporary_files()
@sole_writer
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
    output_format: str | None = None,
    target: str | None = None,
    accuracy: AccuracyBudget | Mapping[str, Any] | None = None,
    verify: bool = True,
    trust_input: bool = False,
    tune: str = "measure",
    aot: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a model to an artifact that runs on a backend.

    Args:
        model: torch.nn.Module, ExportedProgram, path (.onnx, .pt, .pth, .pt2, .gguf, or a Hugging Face folder), bytes,
            ModelProto or onnx_ir.Model.
        recipe: name, path of a YAML file (.yaml, .yml), or a Recipe.
        backend: "onnxruntime", "openvino" or "triton".
        calibration: samples in any form that `Calibration` names, or a Calibration; needed by static recipes, and by
            smoothing with a given alpha. A dynamic recipe without it leaves out what needs statistics, and the report
            says so.
        example_inputs: of a torch module, to trace it, by default the first calibration sample; also the sample for
            verification when there is no calibration.
        dynamic_shapes: of a torch module, as torch.export takes them; None: batch and sequence are dynamic.
        ignore: layers that stay float: names, or "re:" and a regular expression; see `ignored_layers`.
        targets: when not empty, the only layers that are quantized.
        output: folder to write; an artifact in it is replaced. None: a temporary folder.
        output_format: "model", or "genai": the folder of a language model for onnxruntime-genai or openvino_genai.
            None: "genai" where the model comes with its tokenizer, else "model".
        target: processor to compile for, see the backend's `targets`; None: one like this.
        verify: compare outputs after exact passes, and the artifact with a reference of its arithmetic; run it; and
            keep in the folder what `qcompile.verify` needs to repeat that: the quantized graph and one sample.
        accuracy: how much accuracy the artifact may lose, e.g. {"max_drop": 0.01, "metric": function}: as few layers as
            possible stay float for it, see `AccuracyBudget`. None: none does.
        trust_input: read files of PyTorch, which run code, and ONNX without limits; see `qcompile.frontend.trace`.
        tune: "measure": layers that are faster in float, as measured on this processor, stay float, and the backend
            writes its fastest forms; "table": by what was measured on others, which is what counts when `target` is
            another processor; "none": quantize all the same. Nothing is measured with `verify=False`: there is nothing
            to run.
        aot: also compile the artifact to machine code for the device that is here, a package that `qcompile.load` runs
            with `trust_input=True`: on Triton, whose artifacts are compiled when they are loaded otherwise.
        progress: called with the name of a stage, which may come more than once, and the part of it that is done, 0 to
            1; None: silent. With a bar of rich, whose task has the total 1, as on the command line:
            `lambda stage, part: bar.update(task, description=stage, completed=part)`.

    Raises:
        QCompileError: with the node, input or setting, the reason and the mend.
    """
    check_arguments(progress, verify=verify, trust_input=trust_input, aot=aot)
    engine = backends.get(backend)
    plan = for_target(recipe_of(recipe, ignore, targets), engine.targets, target)
    check_recipe(plan, engine)
    check_data(plan, calibration)
    check_source(plan, model)
    check_way(tune)
    written_as = format_of(output_format, model)
    if written_as == "genai":
        engine.check_generator()
    if aot:
        check_ahead(engine, written_as)
    budget = budget_of(accuracy, plan)
    if output is not None:
        output = absolute(output)  # whatever code of the user makes the working folder meanwhile
    work = Work.of(model, calibration, example_inputs, dynamic_shapes, verify, trust_input, progress)
    name = model_name(model, work.model.graph.name, output)
    job = Job(work, work.model.clone(), name, plan, engine, target, tune, budget, output, model, written_as, aot)
    with layers_beside(None if output is None else behind_link(output)) as work.finished:
        for stage in STAGES:
            stage(job)
        return write(job)


@room_for_temporary_files()
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
    check_arguments(progress, verify=verify, trust_input=trust_input)
    plan = for_target(recipe_of(recipe, ignore, targets), backends.get("onnxruntime").targets, target)
    check_data(plan, calibration)
    check_source(plan, model)
    work = Work.of(model, calibration, example_inputs, dynamic_shapes, verify, trust_input, progress)
    check_selection(work.model, plan, wanted_operators)
    return work.apply(plan)


def trace(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None, trust_input: bool = False) -> ir.Model:
    """Read a model through the door that fits it and bring it to canonical form; arguments as in `compile`."""
    traced = frontend.trace(
        model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, trust_input=trust_input
    )
    for item in canonical_passes(runs_on(backends.get("onnxruntime"))):
        traced = apply_pass(item, traced).model
    return traced
