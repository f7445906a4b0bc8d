import json

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
    data = json.loads(results.save("speed", BENCHMARK).read_text())
    assert data["goals"] == [{"name": "speed", "measured": 2.0, "bound": 1.5, "at_most": False}]
    assert data["rows"][1] == {"model": "b", "ms": 1234.5}
    assert "cores" in data["machine"]
    assert data["versions"]["onnxruntime"]


def test_versions_leave_out_what_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(results, "PACKAGES", ("onnxruntime", "no-such-package"))
    assert list(results.versions()) == ["onnxruntime"]


def test_documents_are_updated_between_their_markers_only(tmp_path, monkeypatch) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- speed -->\nold \\1\n<!-- /speed -->\nafter\n<!-- other -->x<!-- /other -->\n")
    monkeypatch.setattr(results, "DOCUMENTS", (document,))
    results.update_documents("speed", BENCHMARK, "a CPU \\2")
    lines = document.read_text().splitlines()
    assert lines[0] == "before"
    assert "| a | 1.23 |" in lines
    assert "Measured by `make bench` on a CPU \\2." in lines
    assert lines[-2:] == ["after", "<!-- other -->x<!-- /other -->"]
    assert "old" not in document.read_text()
