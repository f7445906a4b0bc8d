"""What all commands share: options, errors and their exit codes, JSON, and the bar of progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from qcompile import errors

EXIT_CODES: dict[type[errors.QCompileError], int] = {
    errors.QCompileError: 1,
    errors.RecipeError: 2,
    errors.NothingMatchedError: 2,
    errors.ModelError: 3,
    errors.InputError: 3,
    errors.CalibrationError: 3,
    errors.UnsupportedError: 4,
    errors.MissingDependencyError: 4,
    errors.VerificationError: 5,
    errors.ArtifactError: 6,
    errors.KeyFileError: 3,
}
EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 unexpected failure; 2 command line or recipe; 3 model, input, calibration data or key; "
    "4 the backend or target cannot do it, or a dependency is missing; 5 verification failed; 6 artifact folder; "
    "130 interrupted; 141 who reads the output has gone."
)
CLOSED_PIPE = 141
"""What a shell says of a program that the closed pipe behind it ended, such as cat in `cat file | head -1`."""

WRONG_RESULT = EXIT_CODES[errors.VerificationError]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-input",
        help="I know where the model comes from: read PyTorch's files, which run code.",
    ),
]
RunPackage = Annotated[
    bool,
    typer.Option("--run-package", help="I know who made the artifact: run the machine code that --aot compiled of it."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; its own choice when left out.")]


def exit_code(error: errors.QCompileError) -> int:
    """Return the exit code of the nearest class of the error that has one."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


@contextlib.contextmanager
def failures(as_json: bool, debug: bool) -> Iterator[None]:
    """Turn a typed error into one clear message and its exit code. Any other error is a bug; see `report_bug`."""
    try:
        yield
    except errors.QCompileError as error:
        if debug:
            traceback.print_exc()
        if as_json:
            fields = {"subject": error.subject, "reason": error.reason, "mend": error.mend}
            print_json({"error": {"type": type(error).__name__, **fields}})
        else:
            _print_error(error)
        raise typer.Exit(exit_code(error)) from error


_UsageError: Any = typer.BadParameter.__base__
"""What typer raises of a command line that is wrong: it has no other name of its own for it."""


@contextlib.contextmanager
def usage_failures(as_json: bool) -> Iterator[None]:
    """Print what is wrong with the command line as JSON; where that is not asked for, typer has printed it."""
    try:
        yield
    except _UsageError as error:
        if not as_json:
            raise
        path = error.ctx.command_path if error.ctx else "qcompile"
        fields = {"subject": path, "reason": error.format_message().rstrip("."), "mend": f"Try {path} --help"}
        print_json({"error": {"type": "UsageError", **fields}})
        raise SystemExit(error.exit_code) from error


def _print_error(error: errors.QCompileError) -> None:
    console = Console(stderr=True, highlight=False)
    message = Text.assemble(("error: ", "bold red"), (error.subject, "bold"), f": {error.reason}\n{error.mend}.")
    console.print(message, soft_wrap=True)


def report_bug(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Say in one line that qcompile itself has failed: a `sys.excepthook`, after which Python exits with 1."""
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, trace)
        return
    first = (str(error).splitlines() or [""])[0]
    subject, reason = "internal error", f"{kind.__name__}: {first}".rstrip(": .")
    mend = "Run it again with --debug, and report what that prints"
    if isinstance(error, OSError):  # what is printed may not be written: the disk behind it is full
        subject, reason = str(error.filename or "output"), str(error.strerror or error)
        mend = "Give it room and rights; --debug shows where it failed"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at the end
    elif "--json" in sys.argv:
        try:
            print_json({"error": {"type": kind.__name__, "subject": subject, "reason": reason, "mend": mend}})
            return
        except OSError:  # nobody reads it: say it where people look, and leave Python nothing to flush at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _print_error(errors.QCompileError(subject, reason, mend))


@contextlib.contextmanager
def closed_pipe_ends() -> Iterator[None]:
    """End with CLOSED_PIPE where nobody reads the output any more; typer and rich end in silence too, but as bugs do.

    Not on Windows, nor where there is no output from the start.
    """
    try:
        output = os.dup(1)  # rich puts another in its place
    except OSError:
        yield
        return
    try:
        yield
    except SystemExit as end:
        if end.code == EXIT_CODES[errors.QCompileError] and _has_no_reader(output):
            raise SystemExit(CLOSED_PIPE) from None
        raise
    finally:
        os.close(output)


def _has_no_reader(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors only
    return any(event & select.POLLERR for _, event in poll.poll(0))


def print_json(data: Any) -> None:
    """Print data, dataclasses in it as mappings, on the standard output."""
    typer.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on the standard error of a terminal: the stage that runs, how much of it is done, and the time."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)
