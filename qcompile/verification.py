"""The verification of `compile`, repeated where the artifact has gone: on that machine's runtime and processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.artifact import Artifact, load
from qcompile.artifact_portable import GRAPH, read_portable
from qcompile.calibration_data import Calibration
from qcompile.calibration_masks import padding_masks
from qcompile.calibration_sample import counted
from qcompile.compile_requests import check_arguments, first_sample
from qcompile.errors import ArtifactError, CalibrationError, ModelError, RecipeError, UnsupportedError
from qcompile.manifest import versions
from qcompile.outcome import check_finite, check_shapes, cosine, mean_cosine
from qcompile.pipeline import Progress
from qcompile.reference_evaluator import OutOfReachError
from qcompile.report.data import Report, jsonable
from qcompile.report.text import MEASURED_ON, headlines, verified
from qcompile.session import Agreement
from qcompile.verify import MADE_UP, run_all, synthetic_samples, total_difference, usable_masks, without_padding
from qcompile.verify_artifact import verify_artifact
from qcompile.verify_observed import observed_values

_GIVE_THE_MODEL = "give the float model to compare with: against (--against)"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found of an artifact on this machine; what is wrong is raised.

    Attributes:
        path: folder of the artifact, whose files are those of its manifest.
        backend: name of the backend.
        agreements: how far it is from the reference of its arithmetic, in each mode of the runtime.
        not_compared: why there is none; empty where there is.
        accuracy: against the float model, as in `Report.accuracy`; empty without one.
        versions: package -> version, on this machine.
        compiled_with: package -> version, where it was compiled.
    """

    path: Path
    backend: str
    agreements: tuple[Agreement, ...]
    not_compared: str
    accuracy: Mapping[str, Any]
    versions: Mapping[str, str]
    compiled_with: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return data that `json` writes as it is; infinities and NaN become the texts that `float` reads."""
        data: dict[str, Any] = jsonable(dataclasses.asdict(self) | {"path": str(self.path)})
        return data

    def summary(self) -> str:
        """Return it as plain text: what was compared and how far it is apart, and the versions that are others here."""
        lines = [f"artifact {self.path} · {self.backend}", "files     as in the manifest"]
        lines += [f"verified  {line}" for line in verified(self.agreements, self.not_compared)]
        measured = Report(accuracy=dict(self.accuracy))
        lines += headlines(measured)
        for name, version in self.versions.items():
            before = self.compiled_with.get(name, "none")
            if before != version:
                lines.append(f"version   {name} {version} here, compiled with {before}")
        return "\n".join(lines) + "\n"


def verify(
    artifact: Artifact | str | Path,
    *,
    against: Any = None,
    data: Any = None,
    public_key: str | Path | None = None,
    trust_input: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Verify an artifact on the runtime and the processor of this machine, as `compile` did on another.

    Its files are compared with its manifest; what the runtime computes, with its optimizations off and on, with the
    reference of its arithmetic, on the sample that `compile` took; and, where a float model is given, its outputs with
    those of that model on the same runtime. Nothing is compiled.

    Args:
        artifact: its folder, or an Artifact.
        against: the float model, in any form that `compile` takes; a torch module needs `data`.
        data: samples to compare with the float model on, in any form that `Calibration` names, or a Calibration; None:
            made-up inputs.
        public_key: a PEM file; whoever has its other half must have signed the artifact, see `qcompile.load`.
        trust_input: of `against`, as in `compile`.
        progress: as in `compile`.

    Raises:
        ArtifactError: a file is not what the manifest says; or the artifact was compiled without verification, and
            there is no float model.
        SignatureError: there is a public key, and the artifact was not signed with its other half.
        VerificationError: the runtime computes something else than the quantized graph means; or NaN, infinity or
            outputs of another shape where the float model does not.
        UnsupportedError: the reference does not cover the model, and there is no float model.
        RecipeError: there is data and no float model.
    """
    check_arguments(progress, trust_input=trust_input)
    report_progress = progress or (lambda _stage, _part: None)
    if data is not None and against is None:
        raise RecipeError("data", "it is compared with a float model on it, and there is none", "Give against too")
    report_progress("comparing with the manifest", 0.0)
    opened = load(artifact.path if isinstance(artifact, Artifact) else artifact, public_key=public_key)
    agreements, not_compared = _agreements(opened, against is None, report_progress)
    accuracy = {} if against is None else _accuracy(opened, against, data, trust_input, report_progress)
    manifest = opened.manifest
    here = versions(opened.backend)
    return Verification(opened.path, opened.backend, agreements, not_compared, accuracy, here, manifest.versions)


def _agreements(opened: Artifact, required: bool, progress: Progress) -> tuple[tuple[Agreement, ...], str]:
    """Compare the artifact with the reference; return what was found, or why that cannot be, unless it is required."""
    progress("comparing with the reference", 0.0)
    if GRAPH not in opened.manifest.files:
        reason = f"there is no {GRAPH} in it: it was compiled with verify=False (--no-verify)"
        if required:
            raise ArtifactError(str(opened.path), reason, f"Compile the model again without that, or {_GIVE_THE_MODEL}")
        return (), reason
    portable, sample = read_portable(opened.path)
    engine = backends.get(opened.backend)
    probes = engine.probes(opened.model_path, observed_values(portable))
    try:
        return tuple(verify_artifact(portable, None, opened.open_session, probes, sample)), ""
    except OutOfReachError as error:
        if required:
            mend = _GIVE_THE_MODEL[0].upper() + _GIVE_THE_MODEL[1:]
            raise UnsupportedError(str(opened.path), f"it cannot be compared: {error}", mend) from error
        return (), str(error)


def _accuracy(opened: Artifact, against: Any, data: Any, trust_input: bool, progress: Progress) -> dict[str, Any]:
    """Compare the outputs with those of the float model on the same runtime, one sample in memory at a time."""
    progress("reading the float model", 0.0)
    calibration = None if data is None else Calibration.of(data)
    model, calibration = _traced(against, calibration, trust_input)
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    _check_inputs(opened, [str(value.name) for value in inputs])
    samples = synthetic_samples(model) if calibration is None else calibration.read(inputs)
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
            for name, found in cosines.items():
                found.append(cosine(before[name], after[name]))
            count += 1
            yield before, after

    ratio = total_difference(pairs()).sqnr_db
    if not count:
        raise CalibrationError("data", "it holds no sample", "Give one at least; a generator serves once")
    return {
        "sqnr_db": ratio,
        "cosine": {name: mean_cosine(found) for name, found in cosines.items()},
        MEASURED_ON: MADE_UP if calibration is None else counted(count, "sample"),
    }


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


def _check_inputs(opened: Artifact, names: Sequence[str]) -> None:
    own = [port.name for port in opened.manifest.inputs]
    if set(own) != set(names):
        reason = (
            f"its inputs are {', '.join(names) or 'none'} where those of the artifact are {', '.join(own) or 'none'}"
        )
        raise ModelError("the float model", reason, "Give the model that the artifact was compiled from")
