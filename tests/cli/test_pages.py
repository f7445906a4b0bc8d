"""Where `qcompile report --html` writes."""

from __future__ import annotations

from pathlib import Path

import typer.testing

import qcompile
from qcompile.cli import app
from tests.artifacts import write


def test_a_page_in_the_folder_of_the_artifact_has_the_one_name_that_may_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    for name, code in (("other.html", 6), ("manifest.json", 6), ("report.html", 0)):
        result = typer.testing.CliRunner().invoke(app, ["report", str(folder), "--html", str(folder / name)])
        assert result.exit_code == code, name
    assert qcompile.load(folder).path == folder
