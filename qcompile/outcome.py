"""Turns what the passes and the backend said into the report."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.backends import Backend, Lowered
from qcompile.calibration_masks import PaddingMask
from qcompile.capability import quantizers
from qcompile.contract import Finding
from qcompile.errors import VerificationError
from qcompile.graph import all_nodes, layer_name
from qcompile.initializers import without_data
from qcompile.latency import durations
from qcompile.memory import return_freed_memory
from qcompile.outputs import Outputs, cosine_of_output, is_numeric, without_padding
from qcompile.pipeline import Log
from qcompile.recipe import Recipe
from qcompile.report.data import ActivationRange, LayerReport, Report
from qcompile.scheme import Scheme
from qcompile.session import Feed, Session
from qcompile.tied_tables import tied_bytes
from qcompile.unlisted import unlisted
from qcompile.verify import difference, run_all

LATENCY_SECONDS = 1.0
"""How long the float model and the artifact are timed, together."""

_REPORT = "Report this with the model and the recipe"
_GRAPHS_OF_EXPORTERS = frozenset({None, "", "main", "main_graph", "torch_jit", "torch-jit-export"})
_LAYER_ACTIONS = ("quantized", "kept", "ignored")
_INTEGER_OPERATORS = ("Linear", "Conv", "ConvTranspose")


def build_report(
    model: ir.Model,
    recipe: Recipe,
    log: Log,
    *,
    name: str,
    backend: str,
    target: str | None,
    ranges: Sequence[ActivationRange],
) -> Report:
    """Return the report of the passes: layers, channel scales, passes; measurements are added by `measure`.

    Args:
        model: the float model in canonical form.
        recipe: what was applied.
        log: what the passes did.
        name: of the model, see `model_name`.
        backend: name of the backend.
        target: processor, or None.
        ranges: of each smoothed activation, before and after.
    """
    entries = [(name, finding) for name, findings in log.findings.items() for finding in findings]
    quantizing = [f for name, f in entries if f.operator and f.action in _LAYER_ACTIONS]
    lossless = log.before_quantized or log.before_loss or model
    quantizing += unlisted(lossless, {finding.value for finding in quantizing})
    schemes = " + ".join(f"{_words(item.activations)} × {_words(item.weights)}" for item in quantizers(recipe))
    scales = [finding for name, finding in entries if name == "FoldScales"]
    names = Counter(finding.layer for finding in quantizing)
    ordered = sorted(quantizing, key=_position(lossless))
    layers = [_layer(finding, schemes, log, names[finding.layer]) for finding in ordered]
    return Report(
        model=name,
        recipe=recipe.name,
        backend=backend,
        target=target,
        layers=layers,
        channel_scales={action: sum(f.action == action for f in scales) for action in ("folded", "explicit")},
        passes=list(log.passes),
        activation_ranges=list(ranges),
        findings=[f for _, f in entries if f not in quantizing],
        budget=log.budget,
        forms=list(log.forms),
        not_timed=log.not_timed,
    )


def model_name(model: object, graph: str | None, output: str | Path | None) -> str:
    """Return what the user calls the model: its file or class, else its graph; of exporters' names, the output folder.

    Args:
        model: what was given to `compile`.
        graph: name of its graph.
        output: folder that is written, or None.
    """
    if isinstance(model, (str, os.PathLike)):
        return os.fsencode(Path(model).stem).decode(errors="replace")  # on Linux a name is bytes, not always UTF-8
    if hasattr(model, "forward"):
        return type(model).__name__
    if graph not in _GRAPHS_OF_EXPORTERS:
        return str(graph)
    return "model" if output is None else Path(output).resolve().name


def _position(model: ir.Model) -> Callable[[Finding], float]:
    """Return the key that sorts layers by the place of their node in the graph, or of the first that is called so."""
    values: dict[str, int] = {}
    names: dict[str, int] = {}
    for index, node in enumerate(all_nodes(model)):
        names.setdefault(layer_name(node), index)
        values.update((str(value.name), index) for value in node.outputs)
    return lambda finding: values.get(finding.value, names.get(finding.layer, math.inf))


def _layer(finding: Finding, schemes: str, log: Log, of_name: int) -> LayerReport:
    multiplies = finding.operator in _INTEGER_OPERATORS
    times = log.times.get(finding.layer, (None, None))
    alone = of_name == 1 or finding.action != "quantized"
    namesakes = "" if alone else f"one of {of_name} of this name"
    return LayerReport(
        finding.layer,
        finding.operator,
        finding.action,
        "; ".join(filter(None, (finding.reason, namesakes))),
        finding.sqnr_db,
        finding.shape,
        scheme=schemes if finding.action == "quantized" and multiplies else "",
        accumulated_db=log.accumulated.get(finding.value),
        gain_db=log.gains.get(finding.layer) if finding.action == "quantized" else None,
        quantized_ms=times[0],
        float_ms=times[1],
    )


def _words(scheme: Scheme) -> str:
    words = (["dynamic"] if scheme.dynamic else []) + [scheme.dtype, scheme.granularity.replace("_", " ")]
    return " ".join(words)


def measure(
    report: Report,
    engine: Backend,
    model: ir.Model,
    open_written: Callable[[], Session],
    folder: Path,
    lowered: Lowered,
    samples: Sequence[Feed],
    masks: Sequence[PaddingMask],
) -> None:
    """Add size, latency and accuracy of the written artifact to the report, against the float model.

    No latency where the device that the artifact is for is not here.

    Args:
        report: is completed.
        engine: the backend, which runs both.
        model: the float model in canonical form.
        open_written: loads what was written, as it will be run.
        folder: where it was written.
        lowered: what the backend wrote.
        samples: inputs to run; without any, only the size is added.
        masks: inputs that mark padding, which does not count for accuracy.

    Raises:
        VerificationError: the artifact computes NaN or infinity where the float model does not, or an output of
            another shape.
    """
    _correct_layers(report, lowered.findings)
    report.size = {
        "float_bytes": file_bytes(model) - tied_bytes(model),
        "quantized_bytes": sum((folder / name).stat().st_size for name in lowered.files),
    }
    if lowered.package is not None:
        report.size["package_bytes"] = (folder / lowered.package).stat().st_size
    if not samples:
        return
    # Each session holds a copy of the weights, so one is open at a time: float, quantized, float again, so that a
    # machine that becomes slower or faster meanwhile does so for both alike.
    gc.collect()  # graphs are cycles: those that the lowering left behind hold quantized weights
    before, first = _run_and_time(lambda: engine.open_session(model), samples, 0.25)
    after, quantized = _run_and_time(open_written, samples, 0.5)
    check_shapes(before, after, model.graph, lowered.model_file)
    check_finite(before, after, lowered.model_file)
    before, after = (without_padding(side, samples, masks) for side in (before, after))
    report.accuracy = {
        "sqnr_db": difference(before, after).sqnr_db,
        "cosine": {name: cosine_of_output(before, after, name) for name in before[0]},
    }
    del before, after  # logits over a vocabulary are large
    if engine.untimed():
        return
    _, last = _run_and_time(lambda: engine.open_session(model), samples[:1], 0.25)
    medians = {"float_ms": statistics.median(first + last), "quantized_ms": statistics.median(quantized)}
    report.latency = {name: 1000 * seconds for name, seconds in medians.items()}


def file_bytes(model: ir.Model) -> int:
    """Return how large the model is as one ONNX file; the weights are counted, not copied."""
    skeleton, weights = without_data(model)
    return weights + int(ir.to_proto(skeleton).ByteSize())


def _correct_layers(report: Report, findings: Sequence[Finding]) -> None:
    """Make what the backend computes in float "kept" in the report; findings on anything else are added to it.

    A layer is known by its name alone: where several have one, and one of them stays float, none is called quantized.
    """
    reasons: dict[str, list[str]] = {}
    quantized = {layer.name for layer in report.layers if layer.action == "quantized"}
    for finding in findings:
        if finding.action == "kept" and finding.layer in quantized:
            reasons.setdefault(finding.layer, []).append(finding.reason)
        else:
            report.findings.append(finding)
    for index, layer in enumerate(report.layers):
        if layer.action == "quantized" and layer.name in reasons:
            reason = "; ".join(dict.fromkeys(reasons[layer.name]))
            report.layers[index] = dataclasses.replace(
                layer, action="kept", reason=reason, sqnr_db=None, gain_db=None, scheme=""
            )


def _run_and_time(
    open_session: Callable[[], Session], samples: Sequence[Feed], share: float
) -> tuple[Outputs, list[float]]:
    """Return the outputs, and how long runs on the first sample took in a share of LATENCY_SECONDS, in seconds."""
    return_freed_memory()
    session = open_session()
    return run_all(session, samples), durations(lambda: session.run(samples[0]), seconds=share * LATENCY_SECONDS)


def check_shapes(
    before: Sequence[Mapping[str, np.ndarray]],
    after: Sequence[Mapping[str, np.ndarray]],
    graph: ir.Graph,
    name: str,
) -> None:
    """Raise VerificationError for an output of another shape.

    A dim that is neither fixed nor a dim of an input depends on the values: how many boxes a detector finds may change.
    """
    given = {str(dim) for value in graph.inputs for dim in value.shape or () if str(dim) != "None"}
    for expected, actual in zip(before, after, strict=True):
        for value in graph.outputs:
            output = str(value.name)
            if output not in actual:
                raise VerificationError(f"artifact {name}", f"it has no output {output}", _REPORT)
            shapes = np.shape(expected[output]), np.shape(actual[output])
            dims = value.shape or [ir.SymbolicDim(None)] * len(shapes[0])
            same_rank = len(shapes[0]) == len(shapes[1])
            if not same_rank or any(
                a != b and (isinstance(dim, int) or str(dim) in given) for dim, a, b in zip(dims, *shapes, strict=False)
            ):
                reason = f"output {output} has shape {list(shapes[1])} where the float model's has {list(shapes[0])}"
                raise VerificationError(f"artifact {name}", reason, _REPORT)


def check_finite(
    before: Sequence[Mapping[str, np.ndarray]], after: Sequence[Mapping[str, np.ndarray]], name: str
) -> None:
    """Raise VerificationError for NaN or infinity in an output that is finite in the float model."""
    for expected, actual in zip(before, after, strict=True):
        for output, array in expected.items():
            if is_numeric(array) and np.all(np.isfinite(array)) and not np.all(np.isfinite(actual[output])):
                reason = f"it computes NaN or infinity in output {output} where the float model does not"
                raise VerificationError(f"artifact {name}", reason, _REPORT)
