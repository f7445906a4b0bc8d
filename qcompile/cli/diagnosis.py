"""The command that looks at the machine: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qcompile.cli.console import EXIT_CODES, WRONG_RESULT, Debug, Json, failures, print_json, progress_bar
from qcompile.errors import MissingDependencyError

if TYPE_CHECKING:
    from qcompile.doctor import Check, Diagnosis


def doctor(
    target: Annotated[str | None, typer.Option(help="Processor to compile for, such as avx2; one like this.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what the runtimes of this machine can do, measured on a small model.

    Exit code 5 when one computes wrong, else 4 when one is installed and cannot be imported.
    """
    with failures(as_json, debug):
        from qcompile.doctor import diagnose

        with progress_bar() as progress:
            found = diagnose(target=target, progress=progress)
        if as_json:
            print_json(found.to_dict())
        else:
            _print(found)
        if found.problems:
            raise typer.Exit(WRONG_RESULT if found.computes_wrong else EXIT_CODES[MissingDependencyError])


def _print(found: Diagnosis) -> None:
    from qcompile.calibration_sample import counted

    features = ", ".join(found.features) if found.features is not None else "features not known on this system"
    typer.echo(f"processor  {found.processor}, {found.cores} cores ({features or 'none that matter'})")
    packages = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    typer.echo(f"python     {found.python}, {packages}")
    for runtime in found.runtimes:
        typer.echo(f"\n{runtime.backend} {runtime.version or 'is not installed'}")
        for name, value in runtime.says.items():
            typer.echo(f"  {name}: {value}")
        if runtime.problem:
            typer.echo(f"  problem: {runtime.problem}\n  {runtime.mend}.")
        for check in runtime.checks:
            typer.echo(f"  {_words(check)}")
    typer.echo(f"\n{counted(len(found.problems), 'problem')}" if found.problems else "\nnothing is wrong")


def _words(check: Check) -> str:
    if check.problem:
        return f"problem: {check.problem}\n  {check.mend}."
    words = f"{check.name} INT8: right"
    if check.max_steps is not None:
        words += f", within {check.max_steps:.2g} quantization steps of the reference"
    if check.float_ms and check.quantized_ms:
        words += f", {check.float_ms / check.quantized_ms:.1f} times as fast as float"
    return words
