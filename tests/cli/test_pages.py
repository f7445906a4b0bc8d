"""Where `qcompile report --html` writes."""

from __future__ import annotations

from pathlib import Path

import qcompile
from tests.artifacts import write
from tests.cli.commands import run


def test_a_page_in_the_folder_of_the_artifact_has_the_one_name_that_may_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write(folder)
    for name, code in (("other.html", 6), ("manifest.json", 6), ("report.html", 0)):
        result = run("report", folder, "--html", folder / name)
        assert result.exit_code == code, name
    assert qcompile.load(folder).path == folder
