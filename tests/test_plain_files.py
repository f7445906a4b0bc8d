"""Pipes and devices in the place of files: refused at once, where reading would wait for ever."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import typer.testing

from qcompile.artifact import load
from qcompile.cli import app
from qcompile.errors import ArtifactError, RecipeError
from qcompile.plain_files import check_plain
from qcompile.recipe import Recipe
from tests.artifacts import check_output, write

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")

NEVER = "it is not a plain file"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.npz")
    return tmp_path / "pipe.npz"


def test_a_file_is_plain_and_a_link_to_it_and_nothing_else(pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    check_plain(tmp_path / "file")
    check_plain(tmp_path / "link")
    for path in (pipe, tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match=NEVER):
            check_plain(path)
    with pytest.raises(FileNotFoundError):
        check_plain(tmp_path / "nothing")
    with pytest.raises(OSError, match="no file can have this name"):
        check_plain(tmp_path / "a\0b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "model.onnx", "-o", "out", "-c", "pipe.npz"),
        ("compile", "model.onnx", "-o", "out", "-c", "."),
        ("verify", "artifact", "--against", "model.onnx", "--data", "pipe.npz"),
        ("bench", "artifact", "--data", "pipe.npz"),
        ("bench", "artifact", "--data", os.devnull),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("pipe")
def test_data_of_the_command_line(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = write(tmp_path / "artifact")
    (tmp_path / "model.onnx").write_bytes(artifact.model_path.read_bytes())
    result = typer.testing.CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert NEVER in result.stderr


def test_an_array_that_is_no_npz_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    np.save(tmp_path / "one.npy", np.zeros(3))
    result = typer.testing.CliRunner().invoke(
        app, ["bench", str(tmp_path / "artifact"), "--data", str(tmp_path / "one.npy")]
    )
    assert (result.exit_code, "it is no .npz file" in result.stderr) == (3, True)


def test_a_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(RecipeError, match=NEVER):
        Recipe.from_yaml(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["manifest.json", "report.json"])
def test_files_of_an_artifact(name: str, tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(ArtifactError):
        load(tmp_path / "out")
    if name == "manifest.json":
        with pytest.raises(ArtifactError, match=NEVER):
            check_output(tmp_path / "out")


def test_a_damaged_artifact_with_a_pipe_for_its_report_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    (tmp_path / "out" / "report.json").unlink()
    os.mkfifo(tmp_path / "out" / "report.json")
    with pytest.raises(ArtifactError):
        check_output(tmp_path / "out")


@pytest.mark.parametrize("key", ["private", "public"])
def test_a_signature_and_a_key_that_never_ends(key: str, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from qcompile.artifact_signature import sign

    write(tmp_path / "out")
    if key == "private":
        with pytest.raises(ArtifactError, match="key cannot be read"):
            sign(tmp_path / "out", "/dev/zero")
        return
    os.mkfifo(tmp_path / "out" / "manifest.json.sig")
    with pytest.raises(ArtifactError, match=NEVER):
        load(tmp_path / "out", public_key="/dev/zero")
