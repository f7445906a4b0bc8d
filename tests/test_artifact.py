import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.artifact import Artifact, check_output, load, write_artifact
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, InputError, UnsafeModelError
from qcompile.recipe import Recipe
from qcompile.report import LayerReport, Report

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
adding (float[batch, 3] x, int64[batch] n) => (float[batch, 3] y) <float[3] b = {1.0, 2.0, 3.0}> { y = Add(x, b) }
"""
REPORT = Report(model="adding", layers=[LayerReport("fc", "Linear", "kept", "too small")], latency={"float_ms": 1.5})


def save(folder: Path, external: str | None = None) -> Lowered:
    model = ir.from_onnx_text(TEXT)
    model.graph.initializers["b"].const_value = ir.tensor(np.arange(1, 4, dtype=np.float32), name="b")
    ir.save(model, folder / "model.onnx", external_data=external, size_threshold_bytes=0)
    return Lowered("model.onnx", ("model.onnx", external) if external else ("model.onnx",))


def write(output: Path | None, how=save, **other) -> Artifact:
    graph = ir.from_onnx_text(TEXT).graph
    fields = {
        "recipe": Recipe("float", ignore=("a",)),
        "backend": "onnxruntime",
        "target": "avx2",
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "calibration": "0123",
        "report": REPORT,
    }
    return write_artifact(output, how, **(fields | other))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_manifest(folder: Path, **changes) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | changes))


def test_a_written_artifact_runs_and_loads_as_what_it_was(tmp_path):
    written = write(tmp_path / "out")
    loaded = load(tmp_path / "out")
    feed = {"x": np.zeros((2, 3), np.float32), "n": np.zeros(2, np.int64)}
    for artifact in (written, loaded):
        np.testing.assert_array_equal(artifact.run(feed)["y"], [[1, 2, 3], [1, 2, 3]])
        np.testing.assert_array_equal(artifact(**feed)["y"], artifact.run(feed)["y"])
    assert loaded == written
    assert loaded.report == REPORT
    assert loaded.recipe == Recipe("float", ignore=("a",))
    assert loaded.model_path == tmp_path / "out" / "model.onnx"
    assert (loaded.backend, loaded.manifest.target, loaded.manifest.calibration) == ("onnxruntime", "avx2", "0123")


def test_the_manifest_says_what_the_folder_holds_and_what_goes_in_and_out(tmp_path):
    manifest = write(tmp_path / "out", lambda folder: save(folder, "model.onnx.data")).manifest
    assert sorted(manifest.files) == ["model.onnx", "model.onnx.data"]
    assert manifest.files["model.onnx.data"].size == (tmp_path / "out" / "model.onnx.data").stat().st_size == 12
    assert [(port.name, port.dtype, port.shape) for port in manifest.inputs] == [
        ("x", "float32", ("batch", 3)),
        ("n", "int64", ("batch",)),
    ]
    assert [(port.name, port.dtype, port.shape) for port in manifest.outputs] == [("y", "float32", ("batch", 3))]
    assert {"qcompile", "onnx", "onnxruntime"} <= set(manifest.versions)


def test_equal_inputs_give_equal_bytes_whatever_was_measured(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", report=Report(latency={"float_ms": 99.0}))
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first.pop("report.json") != second.pop("report.json")
    assert first == second


def test_the_report_may_be_completed_while_the_files_are_written(tmp_path):
    report = Report()

    def write_and_measure(folder: Path) -> Lowered:
        report.latency["quantized_ms"] = 0.5
        return save(folder)

    write(tmp_path / "out", write_and_measure, report=report)
    assert load(tmp_path / "out").report.latency == {"quantized_ms": 0.5}


def test_the_wrong_feed_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="'m'"):
        write(tmp_path / "out").run({"x": np.zeros((2, 3), np.float32), "m": np.zeros(2, np.int64)})


def test_without_an_output_the_folder_lives_as_long_as_the_artifact():
    artifact = write(None)
    folder = artifact.path
    assert load(folder).manifest == artifact.manifest
    del artifact
    gc.collect()
    assert not folder.exists()


def test_without_an_output_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError, match="verification"):
        write(None, break_off)
    assert os.listdir(tmp_path) == []


def test_an_artifact_is_replaced_whole(tmp_path):
    write(tmp_path / "out", lambda folder: save(folder, "model.onnx.data"))
    (tmp_path / "out" / "report.html").write_text("made by the user from report.json")
    replaced = write(tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["manifest.json", "model.onnx", "report.json"]
    assert load(tmp_path / "out") == replaced
    assert os.listdir(tmp_path) == ["out"]


def test_a_damaged_artifact_may_be_replaced(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").unlink()
    write(tmp_path / "out")
    load(tmp_path / "out")


def a_folder_of_the_user(output: Path) -> Path:
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    return output


def an_artifact_with_a_file_of_the_user(output: Path) -> Path:
    write(output)
    (output / "thesis.tex").write_text("years of work")
    return output / "thesis.tex"


def a_web_application(output: Path) -> Path:
    output.mkdir()
    (output / "manifest.json").write_text('{"name": "shop", "start_url": "/"}')
    return output / "manifest.json"


def a_folder_in_a_folder(output: Path) -> Path:
    (output / "empty" / "empty").mkdir(parents=True)
    return output


def a_file(output: Path) -> Path:
    output.write_text("text")
    return output


@pytest.mark.parametrize(
    "what",
    [a_folder_of_the_user, an_artifact_with_a_file_of_the_user, a_web_application, a_folder_in_a_folder, a_file],
)
def test_what_is_not_an_artifact_is_never_deleted(what, tmp_path):
    culprit = what(tmp_path / "out")
    before = files(tmp_path)
    for attempt in (check_output, write):
        with pytest.raises(ArtifactError) as raised:
            attempt(tmp_path / "out")
        assert raised.value.subject == str(culprit)
    assert files(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    load(tmp_path / "out")


def break_off(folder: Path) -> Lowered:
    save(folder)
    raise InputError("the verification", "it failed", "This is a test")


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="verification"):
        write(tmp_path / "new" / "deep" / "out", break_off)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_artifact_before_it(tmp_path):
    write(tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(InputError, match="verification"):
        write(tmp_path / "out", break_off)
    assert files(tmp_path) == before


def test_a_rename_that_fails_leaves_the_artifact_before_it(tmp_path, monkeypatch):
    write(tmp_path / "out")
    before = files(tmp_path)
    rename = Path.rename

    def fail_for_the_new_folder(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no room")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_folder)
    with pytest.raises(ArtifactError, match="no room"):
        write(tmp_path / "out")
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file/out: it cannot be written"):
        write(tmp_path / "file" / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_artifact import save, write

def killed(folder):
    lowered = save(folder)
    if sys.argv[3] == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
    return lowered

if sys.argv[3] == "before the manifest":
    from qcompile.manifest import Manifest
    Manifest.to_json = lambda self: os.kill(os.getpid(), signal.SIGKILL)
write(Path(sys.argv[2]), killed)
"""


@pytest.mark.parametrize("moment", ["while writing", "before the manifest"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_killed_compilation_leaves_the_old_artifact_or_none(moment, existing, tmp_path):
    output = tmp_path / "out"
    if existing:
        write(output, lambda folder: save(folder, "model.onnx.data"))
    before = files(output) if existing else {}
    done = subprocess.run([sys.executable, "-c", KILLED, __file__, output, moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert output.exists() == existing
    assert (files(output) if existing else {}) == before
    write(output)
    load(output)


def remove_file(folder: Path) -> str:
    (folder / "model.onnx.data").unlink()
    return "model.onnx.data"


def add_file(folder: Path) -> str:
    (folder / "extra").mkdir()
    (folder / "extra" / "payload.bin").write_bytes(b"x")
    return "extra/payload.bin"


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
        add_file,
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


def test_an_html_report_may_lie_in_the_folder(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "report.html").write_text("<p>")
    load(tmp_path / "out")


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
