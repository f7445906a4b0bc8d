import errno
import gc
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile import artifact_exchange, backends
from qcompile.artifact import load
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError, InputError, RecipeError, SignatureError
from qcompile.recipe import Recipe
from qcompile.report import Report
from tests.artifacts import REPORT, a_web_application, check_output, files, save, write


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


def test_the_array_of_the_only_input_needs_no_name(tmp_path):
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]> g (float[n] self) => (float[n] y)
        { y = Neg(self) }""")
    artifact = write(
        tmp_path / "out",
        lambda folder: backends.get("onnxruntime").lower(model, folder, target=None),
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
    )
    x = np.ones(2, np.float32)
    for outputs in (artifact(x), artifact(self=x), artifact.run({"self": x})):
        np.testing.assert_array_equal(outputs["y"], -x)
    with pytest.raises(InputError, match="2 arrays without a name"):
        artifact(x, x)
    with pytest.raises(InputError, match="it is a list"):
        artifact([1.0])


@pytest.mark.parametrize("feed", [{}, {"n": np.zeros(2, np.int64)}])
def test_an_array_without_a_name_is_refused_where_there_are_more_inputs(tmp_path, feed):
    with pytest.raises(InputError) as caught:
        write(tmp_path / "out")(np.zeros((2, 3), np.float32), **feed)
    assert (caught.value.subject, caught.value.reason) == ("1 array without a name", "the inputs of the model are x, n")
    assert "artifact(x=..., n=...)" in caught.value.mend


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
    monkeypatch.setattr(artifact_exchange, "exchanged", lambda _first, _second: False)  # where there is no such step
    with pytest.raises(ArtifactError, match="no room"):
        write(tmp_path / "out")
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file/out: it cannot be written"):
        write(tmp_path / "file" / "out")


@pytest.mark.parametrize("output", [None, "out"])
def test_a_file_of_the_model_that_is_gone_is_not_blamed_on_the_folder(output, tmp_path):
    def read_what_is_gone(folder: Path) -> Lowered:
        (tmp_path / "weights.bin").read_bytes()
        return save(folder)

    with pytest.raises(ArtifactError, match=r"the work on it failed: .*No such file") as raised:
        write(None if output is None else tmp_path / output, read_what_is_gone)
    assert raised.value.subject == str(tmp_path / "weights.bin")


@pytest.mark.parametrize("output", [None, "out"])
def test_a_disk_that_is_full_is_named_by_the_folder(output, tmp_path):
    def fill_the_disk(_: Path) -> Lowered:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"it cannot be written: .*No space"):
        write(None if output is None else tmp_path / output, fill_the_disk)


def test_a_file_of_the_artifact_that_cannot_be_written_is_blamed_on_the_folder(tmp_path):
    def write_into_nothing(folder: Path) -> Lowered:
        (folder / "none" / "model.onnx").write_bytes(b"")
        return save(folder)

    with pytest.raises(ArtifactError, match="out: it cannot be written"):
        write(tmp_path / "out", write_into_nothing)


def test_a_pipe_in_the_place_of_the_report_is_not_waited_for(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "report.json").unlink()
    os.mkfifo(tmp_path / "out" / "report.json")
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path / "out")


def test_what_is_no_folder_and_no_key_is_said(tmp_path):
    artifact = write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="it is a file"):
        load(artifact.model_path)
    with pytest.raises(SignatureError, match="it is a int"):
        load(tmp_path / "out", public_key=5)


def test_the_root_of_a_file_system_is_no_folder_to_write_or_load():
    for attempt in (check_output, load):
        with pytest.raises(ArtifactError, match="root of a file system"):
            attempt(Path.cwd().anchor)


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    write(here)
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    before = files(tmp_path)
    for output in (".", Path(""), here, "..", "../../link"):
        with pytest.raises(
            ArtifactError, match="it is the current folder, as an empty path is, or one above"
        ) as raised:
            check_output(output)
        assert "beside it" in raised.value.mend
    with pytest.raises(ArtifactError, match="the path is empty"):
        check_output("")
    assert files(tmp_path) == before
    check_output("beside/it")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system of Linux in which nothing can be made")
def test_where_nothing_can_be_made_no_other_process_is_blamed():
    with pytest.raises(ArtifactError, match="it cannot be written"):
        check_output(Path("/proc/x"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("threads", [100_000, 0, -1, 1.5, True])
def test_threads_that_a_machine_is_not_made_for_are_refused(backend, threads):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> f (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }'
    )
    with pytest.raises(RecipeError, match=f"threads {threads}: this machine takes 1 to"):
        backends.get(backend).open_session(model, threads=threads)
