"""A user who breaks things on purpose gets one message and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from qcompile.cli import app
from qcompile.cli.console import CLOSED_PIPE
from tests.artifacts import write

MAIN = "from qcompile.cli import main; main()"
BUG = "import qcompile.recipe\ndef broken(): raise KeyError('a bug')\nqcompile.recipe.named_recipes = broken\n"
INTERRUPTED = """import os, signal, threading
import qcompile.latency
measure = qcompile.latency.interleaved_medians
def interrupted(*given, **named):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    return measure(*given, **named)
qcompile.latency.interleaved_medians = interrupted
"""


NOTHING = "nothing/there"


def start(*arguments: object, code: str = MAIN, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **{"stdout": subprocess.PIPE, **options})


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "--json"), ("--help",), ("--version",)], ids=" ".join)
def test_a_reader_that_goes_away_ends_it_in_silence(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    process = start(*arguments, stdout=writing)
    os.close(writing)
    os.close(reading)
    assert process.communicate() == (None, "")
    assert process.returncode == CLOSED_PIPE


@pytest.mark.skipif(os.name == "nt", reason="started by a shell")
@pytest.mark.parametrize(("arguments", "code"), [(("recipes",), 0), (("inspect", NOTHING), 3)])
def test_without_any_output_it_ends_as_always(arguments: tuple[str, ...], code: int) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", MAIN, *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "--json")], ids=" ".join)
def test_output_that_cannot_be_written_is_told(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(*arguments, stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("error: output: No space left on device\n")
    assert "Traceback" not in errors


def test_ctrl_c_ends_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    write(tmp_path / "artifact")
    process = start("bench", tmp_path / "artifact", "--seconds", "600", code=INTERRUPTED + MAIN)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors


def test_a_bug_is_one_message_and_exit_code_1() -> None:
    process = start("recipes", code=BUG + MAIN)
    output, errors = process.communicate()
    assert (process.returncode, output) == (1, "")
    assert errors == (
        "error: internal error: KeyError: 'a bug'\nRun it again with --debug, and report what that prints.\n"
    )
    process = start("recipes", "--json", code=BUG + MAIN)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (1, "")
    assert json.loads(output)["error"]["type"] == "KeyError"


def test_a_bug_whose_json_nobody_reads_is_still_one_message() -> None:
    reading, writing = os.pipe()
    process = start("recipes", "--json", code=BUG + MAIN, stdout=writing)
    os.close(writing)
    os.close(reading)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("error: internal error: KeyError: 'a bug'\n")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "subject", "reason"),
    [
        (("inspect", "--json"), "qcompile inspect", "Missing argument"),
        (("inspect", "a.onnx", "--json", "--nonsense"), "qcompile inspect", "--nonsense"),
        (("nonsense", "--json"), "qcompile", "nonsense"),
        (("--json",), "qcompile", "--json"),
        (("bench", "a", "--seconds", "0", "--json"), "qcompile bench", "0.1"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_json_too(arguments: tuple[str, ...], subject: str, reason: str) -> None:
    process = start(*arguments)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (2, "")
    found = json.loads(output)["error"]
    assert (found["type"], found["subject"], found["mend"]) == ("UsageError", subject, f"Try {subject} --help")
    assert reason in found["reason"]


def test_exit_codes_are_the_same_with_json() -> None:
    for arguments, code in ((("recipes",), 0), (("inspect", NOTHING), 3)):
        process = start(*arguments, "--json")
        assert json.loads(process.communicate()[0])
        assert process.returncode == code


def test_debug_shows_where_a_bug_is() -> None:
    process = start("recipes", "--debug", code=BUG + MAIN)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" in errors
    assert ", in broken" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["compile", NOTHING, "-o", "out"], 3, NOTHING),
        (["compile", "empty", "-o", "out"], 3, "empty: it is a folder"),
        (["compile", "text.onnx", "-o", "out"], 3, "text.onnx"),
        (["compile", "text.onnx", "-o", "file/out"], 6, "file/out"),
        (["compile", "text.onnx", "-o", ""], 6, "as an empty path is"),
        (["compile", "text.onnx", "-r", "none.yaml", "-o", "out"], 2, "none.yaml"),
        (["inspect", NOTHING], 3, NOTHING),
        (["inspect", "empty"], 6, "manifest.json"),
        (["inspect", "text.onnx"], 3, "text.onnx"),
        (["verify", NOTHING], 6, "manifest.json"),
        (["verify", "empty"], 6, "manifest.json"),
        (["verify", "text.onnx"], 6, "it is a file"),
        (["verify", "artifact", "--against", NOTHING], 3, NOTHING),
        (["verify", "artifact", "--against", "text.onnx", "--data", NOTHING], 3, NOTHING),
        (["verify", "artifact", "--data", "data.npz"], 2, "Give against"),
        (["verify", "artifact"], 6, "there is no portable.onnx in it"),
        (["bench", "empty"], 6, "manifest.json"),
        (["bench", "artifact", "--against", NOTHING], 3, NOTHING),
        (["bench", "artifact", "--data", NOTHING], 3, NOTHING),
        (["report", NOTHING], 6, "manifest.json"),
        (["chat", "checkpoint"], 6, "Compile it first: qcompile compile"),
        (["chat", "checkpoint"], 6, "/checkpoint -o DIR, and give DIR"),
        (["evaluate", "checkpoint", "--text", "file"], 6, "config.json and safetensors, and no artifact"),
        (["bench", "others"], 6, "it holds model.onnx and no manifest.json"),
        (["bench", "others"], 6, "/others/model.onnx -o DIR"),
        (["bench", "text.onnx"], 6, "/text.onnx -o DIR"),
        (["chat", "empty"], 6, "it is empty, and no manifest.json"),
        (["chat", "notes"], 6, "it holds a, b, c and others, and no manifest.json"),
        (["evaluate", "artifact", "--text", "file", "--against", NOTHING], 3, NOTHING),
        (
            ["evaluate", "artifact", "--text", "file", "--against", "empty"],
            3,
            "empty: it is a folder without config.json",
        ),
        (["compile", "checkpoint", "-r", "keep", "-o", "out"], 2, "weights of a folder of Hugging Face are floats"),
        (["report", "artifact", "--html", "file/report.html"], 6, "file/report.html"),
        (["recipes", NOTHING], 2, NOTHING),
        (["doctor", "--target", "z80"], 4, "avx512-vnni"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_or_is_something_else_has_its_exit_code(
    arguments: list[str], code: int, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "artifact")
    (tmp_path / "empty").mkdir()
    (tmp_path / "checkpoint").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "checkpoint" / name).write_text("{")  # nobody reads it
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "model.onnx").write_text("no model")
    (tmp_path / "notes").mkdir()
    for name in "abcd":
        (tmp_path / "notes" / name).write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "data.npz").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    result = typer.testing.CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == code
    assert sorted(tmp_path.rglob("*")) == before
    assert named in result.stderr
