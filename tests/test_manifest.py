import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.artifact import load
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, UnsafeModelError
from qcompile.sealed_json import sealed, unsealed
from tests.artifacts import a_web_application, save, write


def edit_manifest(folder: Path, **changes) -> None:
    """As somebody does who knows how a fingerprint is made."""
    data = unsealed((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(sealed(data | changes))


def remove_file(folder: Path) -> str:
    (folder / "model.onnx.data").unlink()
    return "model.onnx.data"


def list_less_than_is_read(folder: Path) -> str:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    del files["model.onnx.data"]
    edit_manifest(folder, files=files)
    return "model.onnx.data"


def list_less_than_the_model_names(folder: Path) -> str:
    list_less_than_is_read(folder)
    (folder / "model.onnx.data").unlink()
    seal_the_report_again(folder)
    return "model.onnx"


def seal_the_report_again(folder: Path) -> None:
    report = unsealed((folder / "report.json").read_bytes())
    report["artifact"] = json.loads((folder / "manifest.json").read_text())["fingerprint"]
    (folder / "report.json").write_bytes(sealed(report))


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
    edit_manifest(folder, format_version=3)
    return "manifest.json"


def lack_an_entry(folder: Path) -> str:
    data = unsealed((folder / "manifest.json").read_bytes())
    del data["backend"]
    (folder / "manifest.json").write_bytes(sealed(data))
    return "manifest.json"


def edit_by_hand(folder: Path) -> str:
    text = (folder / "manifest.json").read_text()
    assert '"target": "avx2"' in text
    (folder / "manifest.json").write_text(text.replace('"target": "avx2"', '"target": null'))
    return "manifest.json"


def write_another_type_in_other_words(folder: Path) -> str:
    edit_manifest(folder, inputs=[{"name": "x", "dtype": "float", "shape": None}])  # numpy reads it as float64
    return "manifest.json"


def change_line_ends(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return "manifest.json"


def add_a_file(folder: Path) -> str:
    (folder / "extension.so").write_bytes(b"code")
    return "extension.so"


def add_a_file_deeper(folder: Path) -> str:
    (folder / "inner" / "folder").mkdir(parents=True)
    (folder / "inner" / "folder" / "extension.so").write_bytes(b"code")
    return "inner/folder/extension.so"


def swap_the_weights(folder: Path) -> str:
    path = folder / "model.onnx.data"
    path.write_bytes(np.arange(2, 5, dtype=np.float32).tobytes())
    return "model.onnx.data"


def swap_the_report(folder: Path) -> str:
    write(folder.parent / "other", lambda inside: save(inside, "model.onnx.data"), target=None)
    shutil.copy(folder.parent / "other" / "report.json", folder / "report.json")
    return "report.json"


def edit_the_report(folder: Path) -> str:
    text = (folder / "report.json").read_text()
    assert '"float_ms": 1.5' in text
    (folder / "report.json").write_text(text.replace('"float_ms": 1.5', '"float_ms": 9.5'))
    return "report.json"


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
        list_less_than_the_model_names,
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
        edit_by_hand,
        write_another_type_in_other_words,
        change_line_ends,
        add_a_file,
        add_a_file_deeper,
        swap_the_weights,
        swap_the_report,
        edit_the_report,
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
        (come_from_the_future, "format version 3"),
        (a_web_application, "not a manifest of qcompile"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(damage, reason, tmp_path):
    if damage is not a_web_application:
        write(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ArtifactError, match=reason):
        load(tmp_path / "out")


def test_the_page_of_the_report_may_lie_in_the_folder(tmp_path):
    written = write(tmp_path / "out")
    (tmp_path / "out" / "report.html").write_text("<p>")
    assert load(tmp_path / "out") == written


@pytest.mark.parametrize("external", [None, "model.onnx.data"])
def test_of_up_to_200_single_byte_flips_each_is_refused(external, tmp_path):
    """As many in each file: where the smallest is a hundredth of the bytes, it would seldom have its turn."""
    folder = tmp_path / "out"
    write(folder, lambda inside: save(inside, external))
    paths = sorted(path for path in folder.iterdir())
    rng = np.random.default_rng(0)
    for path in paths:
        whole = path.read_bytes()
        for offset in rng.choice(len(whole), size=min(len(whole), 200 // len(paths)), replace=False):
            flipped = whole[offset] ^ int(rng.integers(1, 256))
            path.write_bytes(whole[:offset] + bytes([flipped]) + whole[offset + 1 :])
            with pytest.raises(ArtifactError):
                load(folder)
        path.write_bytes(whole)
    load(folder)


def test_weights_of_openvino_that_the_manifest_does_not_list_are_refused(tmp_path):
    def without_weights(folder: Path) -> Lowered:
        (folder / "model.xml").write_text("<net/>")
        return Lowered("model.xml", ("model.xml",))

    write(tmp_path / "out", without_weights, backend="openvino")
    load(tmp_path / "out")
    (tmp_path / "out" / "model.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="not in the manifest") as raised:
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
