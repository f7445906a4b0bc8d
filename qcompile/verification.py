"""The verification of `compile`, repeated where the artifact has gone: on that machine's runtime and processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from qcompile import backends
from qcompile.artifact import Artifact, load
from qcompile.artifact_portable import GRAPH, read_portable
from qcompile.compile_requests import check_arguments
from qcompile.errors import ArtifactError, RecipeError, UnsupportedError
from qcompile.manifest import SIGNATURE, versions
from qcompile.pipeline import Progress
from qcompile.reference_evaluator import OutOfReachError
from qcompile.report.data import Report, jsonable
from qcompile.report.text import headlines, verified
from qcompile.session import Agreement
from qcompile.verification_against import compare
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
        warning: where that is much less than what compile measured; empty where it is not.
        versions: package -> version, on this machine.
        compiled_with: package -> version, where it was compiled.
        signature: "checked"; "not checked": there is one, and no key was given; "none": there is none.
    """

    path: Path
    backend: str
    agreements: tuple[Agreement, ...]
    not_compared: str
    accuracy: Mapping[str, Any]
    warning: str
    versions: Mapping[str, str]
    compiled_with: Mapping[str, str]
    signature: Literal["checked", "not checked", "none"]

    def to_dict(self) -> dict[str, Any]:
        """Return data that `json` writes as it is; infinities and NaN become the texts that `float` reads."""
        data: dict[str, Any] = jsonable(dataclasses.asdict(self) | {"path": str(self.path)})
        return data

    def summary(self) -> str:
        """Return it as plain text: what was compared and how far it is apart, and the versions that are others here."""
        lines = [f"artifact {self.path} · {self.backend}", "files     as in the manifest"]
        if self.signature != "none":
            give = "" if self.signature == "checked" else ": give the public key (--public-key)"
            lines.append(f"signature {self.signature}{give}")
        lines += [f"verified  {line}" for line in verified(self.agreements, self.not_compared)]
        measured = Report(accuracy=dict(self.accuracy))
        lines += headlines(measured)
        if self.warning:
            lines.append(f"warning: {self.warning}")
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
            the sample that compile took, made-up inputs where it left none.
        public_key: a PEM file; whoever has its other half must have signed the artifact, see `qcompile.load`. What
            the report says of its accuracy is not signed, and not believed then: fixed limits are held to.
        trust_input: of `against`, as in `compile`. What was compiled of the artifact ahead of time is run of an
            Artifact that is `trusted` alone.
        progress: as in `compile`.

    Raises:
        ArtifactError: a file is not what the manifest says; or the artifact was compiled without verification, and
            there is no float model.
        SignatureError: there is a public key, and the artifact was not signed with its other half.
        ModelError: the float model has other inputs or outputs than the artifact.
        VerificationError: the runtime computes something else than the quantized graph means; or NaN, infinity or
            outputs of another shape where the float model does not; or outputs, or one of floats, that are further from
            the float model's than zeros would be, where compile did not find that: it is another model.
        UnsupportedError: the reference does not cover the model, and there is no float model.
        RecipeError: there is data and no float model.
    """
    check_arguments(progress, trust_input=trust_input)
    report_progress = progress or (lambda _stage, _part: None)
    if data is not None and against is None:
        raise RecipeError("data", "it is compared with a float model on it, and there is none", "Give against too")
    report_progress("comparing with the manifest", 0.0)
    opened = _opened(artifact, public_key)
    agreements, not_compared = _agreements(opened, against is None, report_progress)
    # A signature does not cover the report: who forges one must not set the limits that another model is held to.
    compiled = opened.report.accuracy if public_key is None else {}
    found = None if against is None else compare(opened, against, data, trust_input, report_progress, compiled=compiled)
    return Verification(
        opened.path,
        opened.backend,
        agreements,
        not_compared,
        accuracy={} if found is None else found.accuracy,
        warning="" if found is None else found.warning,
        versions=versions(opened.backend),
        compiled_with=opened.manifest.versions,
        signature=_signature(opened, public_key is not None),
    )


def _opened(artifact: Artifact | str | Path, public_key: str | Path | None) -> Artifact:
    """Return the artifact as it lies in its folder now; what is trusted of one is not of what took its place."""
    if not isinstance(artifact, Artifact):
        return load(artifact, public_key=public_key)
    found = load(artifact.path, public_key=public_key, trust_input=artifact.trusted)
    if artifact.trusted and found.manifest != artifact.manifest:
        raise ArtifactError(str(artifact.path), "it was replaced since it was loaded", "Load it again")
    return found


def _signature(opened: Artifact, checked: bool) -> Literal["checked", "not checked", "none"]:
    if checked:
        return "checked"
    return "not checked" if (opened.path / SIGNATURE).exists() else "none"


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
