"""The bill of materials says what the manifest says, in the words of CycloneDX 1.6."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from qcompile.artifact import Artifact
from qcompile.artifact_bom import bom, save_bom
from qcompile.errors import ArtifactError
from qcompile.report import Report
from tests.artifacts import save, write


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    report = Report(model="adding", accuracy={"sqnr_db": 31.5, "cosine": {"y": 0.99}}, latency={"float_ms": 1.5})
    return write(tmp_path / "out", lambda folder: save(folder, "model.onnx.data"), report=report)


def test_the_model_its_files_and_its_packages_are_listed(artifact: Artifact) -> None:
    found = bom(artifact)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    model, *packages = found["components"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "adding")
    assert {each["name"]: each["hashes"] for each in model["components"]} == {
        name: [{"alg": "SHA-256", "content": entry.sha256}] for name, entry in artifact.manifest.files.items()
    }
    assert {each["name"]: each["version"] for each in packages} == artifact.manifest.versions
    (depends,) = found["dependencies"]
    assert depends == {"ref": model["bom-ref"], "dependsOn": [each["bom-ref"] for each in packages]}
    properties = {each["name"]: each["value"] for each in model["properties"]}
    assert json.loads(properties["qcompile:recipe"]) == json.loads(json.dumps(artifact.manifest.recipe))
    assert properties["qcompile:fingerprint"] == artifact.manifest.fingerprint


def test_the_model_card_has_what_goes_in_and_out_and_the_accuracy(artifact: Artifact) -> None:
    card = bom(artifact)["components"][0]["modelCard"]
    assert card["modelParameters"] == {
        "inputs": [{"format": "x: float32 [batch, 3]"}, {"format": "n: int64 [batch]"}],
        "outputs": [{"format": "y: float32 [batch, 3]"}],
    }
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert metric["value"] == "31.5"


def test_references_are_unique_and_equal_artifacts_have_equal_bills(artifact: Artifact, tmp_path: Path) -> None:
    found = bom(artifact)
    model = found["components"][0]
    listed = [*found["components"], *model["components"], found["metadata"]["component"]]
    references = [each["bom-ref"] for each in listed]
    assert len(set(references)) == len(references)
    again = write(tmp_path / "b", lambda folder: save(folder, "model.onnx.data"), report=artifact.report)
    assert bom(again) == found
    other = write(tmp_path / "c", target=None, report=artifact.report)
    assert bom(other)["serialNumber"] != found["serialNumber"]
    uuid.UUID(found["serialNumber"].removeprefix("urn:uuid:"))


def test_it_is_saved_beside_the_artifact_and_not_in_it(artifact: Artifact, tmp_path: Path) -> None:
    save_bom(artifact, tmp_path / "bom.cdx.json")
    assert json.loads((tmp_path / "bom.cdx.json").read_text()) == bom(artifact)
    for path, reason in ((artifact.path / "bom.cdx.json", "in the folder"), (tmp_path / "no" / "b", "cannot be")):
        with pytest.raises(ArtifactError, match=reason):
            save_bom(artifact, path)
    assert not (artifact.path / "bom.cdx.json").exists()
