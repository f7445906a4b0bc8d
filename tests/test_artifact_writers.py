"""Several processes at one artifact: one wins whole, others are refused or come after it; readers see whole ones."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from qcompile.artifact import load
from qcompile.artifact_exchange import exchanged
from qcompile.artifact_stage import behind_link, stage_beside
from qcompile.compile import compile
from qcompile.errors import ArtifactError, CalibrationError
from qcompile.report import Report
from tests.artifacts import check_output, save, write
from tests.rival_writers import PATIENCE, compile_slowly, small_model, write_slowly, write_together, write_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked from a server")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start at once, from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rival_writers"])
    return context


def started(context: ForkServerContext, work: Callable[..., None], *arguments: object) -> BaseProcess:
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess) -> bool:
    process.join(PATIENCE)
    return process.exitcode == 0


def test_while_one_process_writes_another_is_refused_and_then_wins(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    output = tmp_path / "out"
    write(output, report=Report(model="before"))
    begun, may_end = processes.Event(), processes.Event()
    slow = started(processes, write_slowly, output, begun, may_end)
    assert begun.wait(PATIENCE)
    for attempt in (check_output, write):
        with pytest.raises(ArtifactError, match="another process is writing it") as raised:
            attempt(output)
        assert raised.value.subject == str(output)
    assert load(output).report.model == "before"
    may_end.set()
    assert ended(slow)
    assert load(output).report.model == "slow"
    check_output(output)
    write(output, report=Report(model="after"))
    assert load(output).report.model == "after"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("killed", [False, True])
def test_whoever_compiles_has_the_folder_from_the_start_until_it_ends(
    killed: bool, tmp_path: Path, processes: ForkServerContext
) -> None:
    output = tmp_path / "made" / "out"
    begun, may_end = processes.Event(), processes.Event()
    slow = started(processes, compile_slowly, output, begun, may_end)
    assert begun.wait(PATIENCE)

    def never() -> Iterator[dict[str, np.ndarray]]:
        raise AssertionError("who is refused has looked at the data")

    for _ in range(2):
        with pytest.raises(ArtifactError, match="another process is writing it"):
            compile(small_model(), "w8a8-static", calibration=never, output=output)
    assert not output.exists()
    slow.kill() if killed else may_end.set()  # not both: whoever sets waits for those that wait for it
    assert ended(slow) != killed
    compile(small_model(), "w8a8-dynamic", output=output, verify=False)
    assert load(output).recipe.name == "w8a8-dynamic"
    assert os.listdir(output.parent) == ["out"]


def test_a_compilation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError):
        compile(small_model(), "w8a8-static", calibration=[], output=tmp_path / "made" / "out")
    assert os.listdir(tmp_path) == []


def test_within_a_compilation_another_one_to_the_same_folder_is_refused(tmp_path: Path) -> None:
    refused = []

    def data() -> list[dict[str, np.ndarray]]:
        with pytest.raises(ArtifactError, match="another process is writing it") as raised:
            compile(small_model(), "w8a8-dynamic", output=tmp_path / "out", verify=False)
        refused.append(raised)
        compile(small_model(), "w8a8-dynamic", output=tmp_path / "other", verify=False)
        return [{"x": np.ones((2, 8), np.float32)}]

    compile(small_model(), "w8a8-static", calibration=data, output=tmp_path / "out", verify=False)
    assert refused
    assert load(tmp_path / "out").recipe.name == "w8a8-static"
    assert load(tmp_path / "other").recipe.name == "w8a8-dynamic"
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_path_that_goes_up_again_is_that_of_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with stage_beside(behind_link(tmp_path / "out" / "sub" / "..")) as stage:
        assert stage.parent == tmp_path
        with pytest.raises(ArtifactError, match="another process is writing it"):
            write(tmp_path / "out")


def test_a_folder_named_by_a_relative_path_is_where_it_was_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def data() -> list[dict[str, np.ndarray]]:
        os.chdir(tmp_path / "elsewhere")
        return [{"x": np.ones((2, 8), np.float32)}]

    artifact = compile(small_model(), "w8a8-static", calibration=data, output="out", verify=False)
    assert artifact.path == tmp_path / "out"
    assert os.listdir(tmp_path / "elsewhere") == []


def test_in_one_process_a_writer_within_another_is_refused(tmp_path: Path) -> None:
    def write_within(folder: Path) -> object:
        write(tmp_path / "out")
        return save(folder)

    with pytest.raises(ArtifactError, match="another process is writing it"):
        write(tmp_path / "out", write_within)
    assert os.listdir(tmp_path) == []


def test_of_writers_at_one_moment_each_wins_whole_or_is_refused(tmp_path: Path, processes: ForkServerContext) -> None:
    names, rounds = ("a", "b", "c"), 10
    output, results = tmp_path / "written" / "out", tmp_path / "results"
    results.mkdir()
    start = processes.Barrier(len(names) + 1)
    rivals = [started(processes, write_together, output, name, start, rounds, results) for name in names]
    for turn in range(rounds):
        start.wait(PATIENCE)
        start.wait(PATIENCE)
        said = {name: (results / f"{turn}-{name}").read_text() for name in names}
        assert set(said.values()) <= {"written", "another process is writing it"}
        found = load(output)
        assert found.report.model == found.manifest.target
        assert said[found.report.model] == "written"
        assert os.listdir(output.parent) == ["out"]
        start.wait(PATIENCE)
    assert all(map(ended, rivals))


def test_whoever_reads_while_another_writes_has_one_whole_artifact(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    if not exchanged(tmp_path / "x", tmp_path / "y"):
        pytest.skip("the file system does not exchange: there is a moment without an artifact")
    output = tmp_path / "out"
    write(output, report=Report(model="a"), target="a")
    stop = processes.Event()
    writer = started(processes, write_until, output, stop)
    found = []
    end = time.monotonic() + PATIENCE  # the writer may be slow to start
    while len(found) < 300 or (len({artifact.report.model for artifact in found}) < 2 and time.monotonic() < end):
        found.append(load(output))
    stop.set()
    assert ended(writer)
    assert {artifact.report.model for artifact in found} == {"a", "b"}
    assert all(artifact.report.model == artifact.manifest.target for artifact in found)
