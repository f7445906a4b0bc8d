"""Replacing an artifact: in one step, also a damaged one, and refused early where it cannot be."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from qcompile import artifact_exchange, artifact_writing
from qcompile.artifact import load
from qcompile.artifact_exchange import exchanged
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError
from qcompile.report import Report
from qcompile.sealed_json import sealed
from tests.artifacts import REPORT, check_output, files, save, write


def two_folders(folder: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / name).write_text("")
    return folder / "a", folder / "b"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders in one step")
def test_there_is_no_moment_without_an_artifact(tmp_path, monkeypatch):
    if not exchanged(*two_folders(tmp_path)):
        pytest.skip("the file system does not exchange")
    write(tmp_path / "out")

    def renamed(path: Path, _: Path) -> Path:
        raise AssertionError(f"{path} was renamed")

    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path / "out", report=Report(model="the second"))
    assert load(tmp_path / "out").report.model == "the second"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "out"]


def test_a_link_to_an_artifact_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk" / "out")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    check_output(tmp_path / "link")
    written = write(tmp_path / "link", report=Report(model="the second"))
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "disk" / "out").report.model == "the second"
    assert load(tmp_path / "link") == written
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.listdir(tmp_path / "disk") == ["out"]


def test_where_there_is_no_exchange_it_is_replaced_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact_exchange, "exchanged", lambda _first, _second: False)
    write(tmp_path / "out")
    write(tmp_path / "out", report=Report(model="the second"))
    assert load(tmp_path / "out").report.model == "the second"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two folders in one step")
def test_what_is_not_there_is_not_exchanged(tmp_path):
    first, second = two_folders(tmp_path)
    if not exchanged(first, second):
        pytest.skip("the file system does not exchange")
    assert os.listdir(first) == ["b"]
    with pytest.raises(FileNotFoundError):
        exchanged(first, tmp_path / "nothing")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are not told")
@pytest.mark.parametrize("replaces", [True, False])
def test_all_is_on_the_disk_before_the_manifest_and_that_before_it_takes_the_name(replaces, tmp_path, monkeypatch):
    if replaces:
        write(tmp_path / "out")
    done = []
    fsync, put_in_place = os.fsync, artifact_writing.put_in_place

    def recorded_sync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recorded_put(new: Path, output: Path, old: Path) -> None:
        done.append("takes the name")
        put_in_place(new, output, old)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(artifact_writing, "put_in_place", recorded_put)
    write(tmp_path / "out", lambda folder: save(folder, "model.onnx.data"))
    assert done == [
        *("model.onnx", "model.onnx.data", "report.json", "new"),
        *("manifest.json", "new"),
        "takes the name",
        *(".out.qcompile-stage", tmp_path.name),
    ]


BY_ANOTHER_VERSION = '{"format": "qcompile artifact", "format_version": 1, "files": 3}'


@pytest.mark.parametrize("damaged", ["{", "", "[]", BY_ANOTHER_VERSION, BY_ANOTHER_VERSION.replace("1", "2")])
def test_an_artifact_with_a_damaged_manifest_is_replaced_whole(damaged, tmp_path):
    """Whatever the names of its files are: the report has them too."""

    def save_with_a_tokenizer(folder: Path) -> Lowered:
        lowered = save(folder)
        (folder / "tokenizer.json").write_text("{}")
        (folder / "parts").mkdir()
        (folder / "parts" / "openvino_tokenizer.xml").write_text("<net/>")
        return lowered

    write(tmp_path / "out", save_with_a_tokenizer)
    (tmp_path / "out" / "manifest.json").write_text(damaged)
    write(tmp_path / "out")
    assert load(tmp_path / "out").report == REPORT
    assert sorted(files(tmp_path / "out")) == ["manifest.json", "model.onnx", "report.json"]


def test_where_the_manifest_is_damaged_files_of_others_are_kept(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(ArtifactError, match=r"thesis\.tex"):
        write(tmp_path / "out")
    assert files(tmp_path) == before


def test_a_report_that_was_changed_names_no_files_to_replace(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    report = tmp_path / "out" / "report.json"
    report.write_text(report.read_text().replace('"model.onnx"', '"thesis.tex"'))
    before = files(tmp_path)
    with pytest.raises(ArtifactError, match=r"manifest\.json: it cannot be read"):
        write(tmp_path / "out")
    assert files(tmp_path) == before


@pytest.mark.parametrize("report", [None, "{", json.dumps({"layers": 3}), sealed({"files": 3}).decode(), "[]"])
def test_a_folder_with_any_broken_manifest_is_no_artifact(report, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    (tmp_path / "out" / "model.onnx").write_text("of the user")
    if report is not None:
        (tmp_path / "out" / "report.json").write_text(report)
    before = files(tmp_path)
    with pytest.raises(ArtifactError, match=r"manifest\.json: it cannot be read"):
        write(tmp_path / "out")
    assert files(tmp_path) == before


@pytest.mark.parametrize("below", ["out", "deep/out"])
def test_a_folder_below_a_file_is_refused_before_the_work(below, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="it cannot be written"):
        check_output(tmp_path / "file" / below)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused_before_the_work(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ArtifactError, match="it cannot be written"):
        check_output(tmp_path / "closed" / "out")


def test_looking_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "deep" / "out")
    assert os.listdir(tmp_path) == []
