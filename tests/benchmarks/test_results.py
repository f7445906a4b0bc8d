import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Benchmark, Goal

BENCHMARK = Benchmark("Title", [{"model": "a", "ms": 1.23456}, {"model": "b", "ms": 1234.5}], [Goal("speed", 2.0, 1.5)])


@pytest.mark.parametrize(
    ("goal", "holds"),
    [
        (Goal("speed", 1.5, 1.5), True),
        (Goal("speed", 1.4, 1.5), False),
        (Goal("error", 0.1, 0.1, at_most=True), True),
        (Goal("error", 0.2, 0.1, at_most=True), False),
        (Goal("error", float("nan"), 0.1, at_most=True), False),
    ],
)
def test_goal(goal: Goal, holds: bool) -> None:
    assert goal.holds is holds


def test_markdown_aligns_numbers_to_the_right() -> None:
    assert results.markdown(BENCHMARK).splitlines() == [
        "| model | ms |",
        "| --- | ---: |",
        "| a | 1.23 |",
        "| b | 1234 |",
    ]


def test_saved_file_says_machine_versions_and_goals(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    data = json.loads(results.save("speed", BENCHMARK, "abc1234+").read_text())
    assert data["goals"] == [{"name": "speed", "measured": 2.0, "bound": 1.5, "at_most": False}]
    assert data["rows"][1] == {"model": "b", "ms": 1234.5}
    assert "cores" in data["machine"]
    assert data["commit"] == "abc1234+"
    assert data["versions"]["onnxruntime"]


def test_versions_leave_out_what_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(results, "PACKAGES", ("onnxruntime", "no-such-package"))
    assert list(results.versions()) == ["onnxruntime"]


def test_documents_are_updated_between_their_markers_only(tmp_path, monkeypatch) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- speed -->\nold \\1\n<!-- /speed -->\nafter\n<!-- other -->x<!-- /other -->\n")
    monkeypatch.setattr(results, "DOCUMENTS", (document,))
    results.update_documents("speed", BENCHMARK, "a CPU \\2", "abc1234+")
    lines = document.read_text().splitlines()
    assert lines[0] == "before"
    assert "| a | 1.23 |" in lines
    assert "Measured by `make bench` at commit abc1234+ on a CPU \\2." in lines
    assert lines[-2:] == ["after", "<!-- other -->x<!-- /other -->"]
    assert "old" not in document.read_text()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one commit in place of the project's."""
    folder, document = tmp_path / "benchmarks" / "results", tmp_path / "README.md"
    folder.mkdir(parents=True)
    for path in (document, tmp_path / "code.py"):
        path.write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", folder)
    monkeypatch.setattr(results, "DOCUMENTS", (document,))
    return tmp_path


def test_commit_has_a_plus_when_the_code_differs_from_it(repository: Path) -> None:
    head = (repository / ".git" / "refs" / "heads").glob("*")
    expected = next(head).read_text()
    clean = results.commit()
    assert len(clean) >= 4
    assert expected.startswith(clean)
    (repository / "code.py").write_text("2\n")
    assert results.commit() == f"{clean}+"


def test_commit_does_not_count_what_benchmarks_write(repository: Path) -> None:
    (repository / "README.md").write_text("a new table\n")
    (repository / "benchmarks" / "results" / "speed.json").write_text("{}\n")
    assert not results.commit().endswith("+")


def test_commit_is_unknown_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "DOCUMENTS", ())
    assert results.commit() == "unknown"
