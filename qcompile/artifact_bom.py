"""The bill of materials of an artifact: a CycloneDX 1.6 ML-BOM, derived from its manifest."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from qcompile.artifact import Artifact, absolute
from qcompile.errors import ArtifactError
from qcompile.manifest import Port

_NAMESPACE = uuid.UUID("6f2b1c1e-6c1b-5d5e-9f0c-2d7f5b1f7a10")
"""Of the serial numbers, which are made of the fingerprint: equal artifacts have equal ones."""


def bom(artifact: Artifact) -> dict[str, Any]:
    """Return the bill of materials as the data of a CycloneDX 1.6 JSON file; it has no time stamp.

    It lists what the manifest does: the files with their SHA-256, the packages that made them, the recipe, what goes in
    and out. The accuracy to the float model is that of the report. It does not know where the float model or its
    training data came from, or under which licence: add that, `data["components"][0]["licenses"] = ...`.

    The cyclonedx package has no model card (11.12), without which a model is a file among others; so it is not used.
    """
    manifest, name = artifact.manifest, artifact.report.model or "model"
    reference = f"model:{manifest.fingerprint}"
    packages = {package: _package(package, version) for package, version in sorted(manifest.versions.items())}
    model = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": name,
        "version": manifest.fingerprint[:16],
        "description": f"compiled by qcompile for {manifest.backend}",
        "modelCard": _model_card(artifact),
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{file}",
                "name": file,
                "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
                "properties": [{"name": "qcompile:size", "value": str(entry.size)}],
            }
            for file, entry in sorted(manifest.files.items())
        ],
        "properties": _properties(artifact),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, manifest.fingerprint)}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": f"artifact:{manifest.fingerprint}", "name": name}},
        "components": [model, *packages.values()],
        "dependencies": [{"ref": reference, "dependsOn": [each["bom-ref"] for each in packages.values()]}],
    }


def save_bom(artifact: Artifact, path: str | Path) -> None:
    """Write the bill of materials to a JSON file, in no artifact: a file there that is not in its manifest is refused.

    Raises:
        ArtifactError: the file lies in the folder of the artifact, or cannot be written.
    """
    file = absolute(path)
    if file.resolve().is_relative_to(artifact.path.resolve()):
        raise ArtifactError(str(file), "it lies in the folder of the artifact", "Write it beside that folder")
    try:
        file.write_text(json.dumps(bom(artifact), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(str(file), f"it cannot be written: {error}", "Give a path with room and rights") from error


def _model_card(artifact: Artifact) -> dict[str, Any]:
    manifest, accuracy = artifact.manifest, artifact.report.accuracy
    card: dict[str, Any] = {
        "modelParameters": {
            "inputs": [{"format": _format(port)} for port in manifest.inputs],
            "outputs": [{"format": _format(port)} for port in manifest.outputs],
        }
    }
    if "sqnr_db" in accuracy:
        metric = {"type": "signal-to-quantization-noise ratio, dB", "value": str(accuracy["sqnr_db"])}
        card["quantitativeAnalysis"] = {"performanceMetrics": [metric]}
    return card


def _format(port: Port) -> str:
    shape = (
        "of any rank"
        if port.shape is None
        else "[" + ", ".join("?" if size is None else str(size) for size in port.shape) + "]"
    )
    return f"{port.name}: {port.dtype} {shape}"


def _properties(artifact: Artifact) -> list[dict[str, str]]:
    manifest = artifact.manifest
    given = {
        "qcompile:fingerprint": manifest.fingerprint,
        "qcompile:backend": manifest.backend,
        "qcompile:target": manifest.target,
        "qcompile:calibration": manifest.calibration,
        "qcompile:recipe": json.dumps(manifest.recipe),
        "qcompile:model-file": manifest.model_file,
    }
    return [{"name": name, "value": value} for name, value in given.items() if value is not None]


def _package(name: str, version: str) -> dict[str, str]:
    reference = f"pkg:pypi/{name.lower()}@{version}"
    return {"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference}
