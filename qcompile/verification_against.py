"""The accuracy of an artifact against a float model that a user names: is it the one that it was compiled from?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.artifact import Artifact
from qcompile.artifact_portable import GRAPH, read_portable
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import padding_masks
from qcompile.calibration_sample import counted
from qcompile.compile_requests import first_sample
from qcompile.errors import CalibrationError, ModelError, VerificationError
from qcompile.manifest import Port, ports
from qcompile.outcome import check_finite, check_shapes
from qcompile.outputs import cosine, mean_cosine, without_padding
from qcompile.pipeline import Progress
from qcompile.report.data import MEASURED_ON
from qcompile.report.text import decibel
from qcompile.session import Feed
from qcompile.verify import (
    MADE_UP,
    Difference,
    run_all,
    synthetic_samples,
    total_difference,
    usable_masks,
)

_GIVE = "Give the model that the artifact was compiled from"

_FAR = "further from the float model's than zeros would be"

_POOR_DB = 20.0
"""Below it a tenth of the outputs is lost: what a report warns of in a layer."""

_LESS_DB = 10.0
"""How much less than compile measured is no accident of the samples."""

_ZEROS_COSINE = 0.5
"""Cosine below which values are further apart than zeros would be, where both are of one size."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An artifact beside a float model.

    Attributes:
        accuracy: as in `Report.accuracy`.
        warning: where it is much less than what compile measured; empty where it is not.
    """

    accuracy: Mapping[str, Any]
    warning: str


def compare(
    opened: Artifact,
    against: Any,
    data: Any,
    trust_input: bool,
    progress: Progress,
    *,
    compiled: Mapping[str, Any],
) -> Comparison:
    """Compare the outputs with those of the float model on the same runtime, one sample in memory at a time.

    Args:
        opened: the artifact.
        against: the float model, in any form that `compile` takes.
        data: samples, in any form that `Calibration` names; None: the one in the artifact, else made-up inputs.
        trust_input: of the float model.
        progress: called with what begins.
        compiled: what compile measured, as in `Report.accuracy`; empty where there is nobody to believe that: fixed
            limits are held to then.

    Raises:
        ModelError: it has other inputs or outputs than the artifact.
        VerificationError: see `qcompile.verify`.
        CalibrationError: there is no sample.
    """
    progress("reading the float model", 0.0)
    calibration = None if data is None else Calibration.of(data)
    model, calibration = _traced(against, calibration, trust_input)
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    listed = {port.name for port in opened.manifest.inputs}  # with those that have a default, where they are left
    _check_ports(
        "inputs",
        opened.manifest.inputs,
        ports(value for value in model.graph.inputs if value.const_value is None or value.name in listed),
    )
    _check_ports("outputs", opened.manifest.outputs, ports(model.graph.outputs))
    samples, kind = _samples(opened, model, calibration, inputs)
    accuracy, found, count = _accuracy(opened, model, samples, progress)
    accuracy[MEASURED_ON] = kind or counted(count, "sample")
    if kind != MADE_UP:  # which may lie where the artifact was not calibrated
        _check_ratios(opened, found, compiled)
    return Comparison(accuracy, _warning(found, compiled))


def _samples(
    opened: Artifact, model: ir.Model, calibration: Calibration | None, inputs: Sequence[ir.Value]
) -> tuple[Iterable[Feed], str]:
    """Return the samples, and what they are where the user did not give them."""
    if calibration is not None:
        return calibration.read(inputs), ""
    if GRAPH in opened.manifest.files:
        return [read_portable(opened.path)[1]], "the sample in the artifact"
    return synthetic_samples(model), MADE_UP


def _accuracy(
    opened: Artifact, model: ir.Model, samples: Iterable[Feed], progress: Progress
) -> tuple[dict[str, Any], Difference, int]:
    """Return what `Report.accuracy` holds, the difference that it is of, and on how many samples."""
    masks = padding_masks(model)
    sessions = backends.get(opened.backend).open_session(model), opened.open_session()
    cosines: dict[str, list[float | None]] = {str(value.name): [] for value in model.graph.outputs}
    count = 0

    def pairs() -> Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
        nonlocal count
        for sample in samples:
            progress(f"comparing with the float model, sample {count}", 0.0)
            exact, own = (run_all(session, [sample]) for session in sessions)
            check_shapes(exact, own, model.graph, opened.model_path.name)
            check_finite(exact, own, opened.model_path.name)
            usable = usable_masks(masks, [sample])
            (before,), (after,) = (without_padding(side, [sample], usable) for side in (exact, own))
            for name, each in cosines.items():
                each.append(cosine(before[name], after[name]))
            count += 1
            yield before, after

    found = total_difference(pairs())
    if not count:
        raise CalibrationError("data", "it holds no sample", "Give one at least; a generator serves once")
    accuracy = {"sqnr_db": found.sqnr_db, "cosine": {name: mean_cosine(each) for name, each in cosines.items()}}
    return accuracy, found, count


def _check_ratios(opened: Artifact, found: Difference, compiled: Mapping[str, Any]) -> None:
    """Raise VerificationError where all outputs, or a float one, are further away than zeros, and were not at compile.

    Of a single output the report of compile has the cosine.
    """
    if found.sqnr_db < 0 and not _compiled_db(compiled) < 0:
        raise _another(opened, f"its outputs are {_FAR}: {decibel(found.sqnr_db)} dB{_beside(compiled)}")
    cosines = compiled.get("cosine", {})
    for port in opened.manifest.outputs:
        ratio = found.of_outputs[port.name]
        if port.dtype.startswith("float") and ratio < 0 and not cosines.get(port.name, 1.0) < _ZEROS_COSINE:
            raise _another(opened, f"its output {port.name} is {_FAR}: {decibel(ratio)} dB")


def _another(opened: Artifact, reason: str) -> VerificationError:
    return VerificationError(f"artifact {opened.path}", reason, f"{_GIVE}, and data like that of its calibration")


def _warning(found: Difference, compiled: Mapping[str, Any]) -> str:
    """Return the warning that a ratio deserves beside that of compile, or nothing."""
    if found.sqnr_db < _POOR_DB and not _compiled_db(compiled) - found.sqnr_db < _LESS_DB:
        ratio = decibel(found.sqnr_db)
        return f"the outputs are {ratio} dB from the float model's{_beside(compiled)}: is it the same model?"
    return ""


def _compiled_db(compiled: Mapping[str, Any]) -> float:
    """The ratio that compile measured; NaN where it did not."""
    known = compiled.get("sqnr_db")
    return float(known) if isinstance(known, (int, float)) else math.nan


def _beside(compiled: Mapping[str, Any]) -> str:
    known = _compiled_db(compiled)
    return "" if math.isnan(known) else f" where compile measured {decibel(known)} dB"


def _traced(against: Any, calibration: Calibration | None, trust_input: bool) -> tuple[ir.Model, Calibration | None]:
    """Read the float model, a torch module with the first sample; return it and data that still holds that sample."""
    against = frontend.open_model(against, trust_input=trust_input)
    example = None
    if hasattr(against, "forward") and not hasattr(against, "graph_signature"):
        if calibration is None:
            raise ModelError(
                type(against).__name__, "a torch module is traced with a sample, and there is none", "Give data"
            )
        example, calibration = first_sample(calibration, against)
    return frontend.trace(against, example_inputs=example, trust_input=trust_input), calibration


def _check_ports(kind: str, own: Sequence[Port], given: Sequence[Port]) -> None:
    """Raise ModelError where the names, types or fixed sizes of inputs or outputs are others than the artifact's."""
    names = [", ".join(port.name for port in side) or "none" for side in (given, own)]
    if {port.name for port in own} != {port.name for port in given}:
        raise ModelError(
            "the float model", f"its {kind} are {names[0]} where those of the artifact are {names[1]}", _GIVE
        )
    expected = {port.name: port for port in own}
    for port in given:
        if not _alike(port, expected[port.name]):
            words = [f"{each.dtype} {list(each.shape or ())}" for each in (port, expected[port.name])]
            reason = f"{port.name} of its {kind} is {words[0]} where that of the artifact is {words[1]}"
            raise ModelError("the float model", reason, _GIVE)


def _alike(one: Port, other: Port) -> bool:
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    pairs = zip(one.shape, other.shape, strict=False)
    fixed = ((a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return len(one.shape) == len(other.shape) and all(a == b for a, b in fixed)
