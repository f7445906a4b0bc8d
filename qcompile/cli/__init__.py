"""The command line; each command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
import typer.main

import qcompile
from qcompile.cli import artifacts, chatting, compiling, diagnosis, evaluating, inspecting
from qcompile.cli.console import EXIT_CODES_HELP, closed_pipe_ends, report_bug, usage_failures

app = typer.Typer(
    name="qcompile",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _command in (
    ("compile", compiling.compile_model),
    ("chat", chatting.chat),
    ("export", chatting.export),
    ("inspect", inspecting.inspect),
    ("verify", artifacts.verify),
    ("bench", artifacts.bench),
    ("evaluate", evaluating.evaluate),
    ("report", artifacts.report),
    ("sign", artifacts.sign),
    ("bom", artifacts.bom),
    ("recipes", compiling.recipes),
    ("doctor", diagnosis.doctor),
):
    app.command(_name, epilog=EXIT_CODES_HELP)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcompile {qcompile.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compile PyTorch, ONNX and language models to 2 to 8 bits for ONNX Runtime and OpenVINO."""


def main() -> None:
    """Run the command line. What is no QCompileError is a bug: one line and exit code 1, a traceback with --debug."""
    if "--debug" not in sys.argv:
        sys.excepthook = report_bug
    as_json = "--json" in sys.argv
    with closed_pipe_ends(), usage_failures(as_json):
        command = typer.main.get_command(app)  # app() would put its own hook there
        sys.exit(command(prog_name="qcompile", standalone_mode=not as_json))  # in which typer prints what is wrong
