import json
import shutil
from pathlib import Path

import onnx
import pytest

from qcompile.artifact import load
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, UnsafeModelError
from tests.artifacts import a_web_application, save, write


def edit_manifest(folder: Path, **changes) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | changes))


def remove_file(folder: Path) -> str:
    (folder / "model.onnx.data").unlink()
    return "model.onnx.data"


def list_less_than_is_read(folder: Path) -> str:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    del files["model.onnx.data"]
    edit_manifest(folder, files=files)
    return "model.onnx.data"


def flip_a_bit(folder: Path) -> str:
    path = folder / "model.onnx.data"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    return "model.onnx.data"


def cut_off(folder: Path) -> str:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    return "model.onnx.data"


def link(folder: Path) -> str:
    path = folder / "model.onnx.data"
    shutil.move(path, folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")
    return "model.onnx.data"


def make_a_folder_of_it(folder: Path) -> str:
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").mkdir()
    return "model.onnx.data"


def remove_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json"


def cut_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-20])
    return "manifest.json"


def come_from_the_future(folder: Path) -> str:
    edit_manifest(folder, format_version=2)
    return "manifest.json"


def lack_an_entry(folder: Path) -> str:
    data = json.loads((folder / "manifest.json").read_text())
    del data["backend"]
    (folder / "manifest.json").write_text(json.dumps(data))
    return "manifest.json"


def have_a_type_that_is_none(folder: Path) -> str:
    edit_manifest(folder, inputs=[{"name": "x", "dtype": "float33", "shape": None}])
    return "manifest.json"


def leave_the_folder(folder: Path) -> str:
    shutil.copy(folder / "model.onnx", folder.parent / "model.onnx")
    entry = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, model_file="../model.onnx", files=entry | {"../model.onnx": entry["model.onnx"]})
    return "manifest.json"


def start_at_the_root(folder: Path) -> str:
    entry = json.loads((folder / "manifest.json").read_text())["files"]
    name = str(folder / "model.onnx")
    edit_manifest(folder, model_file=name, files=entry | {name: entry["model.onnx"]})
    return "manifest.json"


def load_what_is_not_listed(folder: Path) -> str:
    edit_manifest(folder, model_file="report.json")
    return "manifest.json"


def cut_report(folder: Path) -> str:
    (folder / "report.json").write_text('{"layers": 3}')
    return "report.json"


def remove_report(folder: Path) -> str:
    (folder / "report.json").unlink()
    return "report.json"


@pytest.mark.parametrize(
    "damage",
    [
        remove_file,
        list_less_than_is_read,
        flip_a_bit,
        cut_off,
        link,
        make_a_folder_of_it,
        remove_manifest,
        cut_manifest,
        come_from_the_future,
        lack_an_entry,
        have_a_type_that_is_none,
        leave_the_folder,
        start_at_the_root,
        load_what_is_not_listed,
        cut_report,
        remove_report,
    ],
)
def test_a_damaged_artifact_is_refused_and_the_file_named(damage, tmp_path):
    folder = tmp_path / "out"
    write(folder, lambda inside: save(inside, "model.onnx.data"))
    culprit = damage(folder)
    with pytest.raises(ArtifactError) as raised:
        load(folder)
    assert raised.value.subject == str(folder / culprit)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (leave_the_folder, "leaves the folder"),
        (start_at_the_root, "leaves the folder"),
        (come_from_the_future, "format version 2"),
        (a_web_application, "not a manifest of qcompile"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(damage, reason, tmp_path):
    if damage is not a_web_application:
        write(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ArtifactError, match=reason):
        load(tmp_path / "out")


@pytest.mark.parametrize("name", ["report.html", "model.html", "model.bin", "notes/mine.txt"])
def test_what_no_runtime_reads_may_lie_in_the_folder(name, tmp_path):
    written = write(tmp_path / "out", lambda inside: save(inside, "model.onnx.data"))
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("<p>")
    assert load(tmp_path / "out") == written


def test_weights_of_openvino_that_the_manifest_does_not_list_are_refused(tmp_path):
    def without_weights(folder: Path) -> Lowered:
        (folder / "model.xml").write_text("<net/>")
        return Lowered("model.xml", ("model.xml",))

    write(tmp_path / "out", without_weights, backend="openvino")
    load(tmp_path / "out")
    (tmp_path / "out" / "model.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="the manifest does not list it") as raised:
        load(tmp_path / "out")
    assert raised.value.subject == str(tmp_path / "out" / "model.bin")


def test_an_onnx_file_that_reads_outside_its_folder_is_refused(tmp_path):
    def escape(folder: Path) -> Lowered:
        lowered = save(folder, "model.onnx.data")
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        model.graph.initializer[0].external_data[0].value = "../secret"
        (folder / "model.onnx.data").unlink()
        onnx.save(model, folder / "model.onnx")
        return lowered

    (tmp_path / "secret").write_bytes(bytes(12))
    write(tmp_path / "out", escape)
    with pytest.raises(UnsafeModelError, match="secret"):
        load(tmp_path / "out")


def test_a_model_file_that_is_not_onnx_is_refused(tmp_path):
    def garbage(folder: Path) -> Lowered:
        (folder / "model.onnx").write_bytes(b"\xff\xfe")
        return Lowered("model.onnx", ("model.onnx",))

    write(tmp_path / "out", garbage)
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        load(tmp_path / "out")
