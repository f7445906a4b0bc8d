"""Runs a command."""

import typer.testing

from qcompile.cli import app


def run(*arguments: object) -> typer.testing.Result:
    result = typer.testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
