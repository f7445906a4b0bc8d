"""The command line: compile, bench, recipes, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import qcompile
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
}
EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 unexpected failure; 2 command line or recipe; 3 model, input or calibration data; "
    "4 the backend or target cannot do it, or a dependency is missing; 5 verification failed; 6 artifact folder."
)

app = typer.Typer(
    name="qcompile",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")]
Trust = Annotated[
    bool, typer.Option("--trust-input", help="I know where the model comes from: read PyTorch's files, which run code.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the runtime; its own choice when left out.")]


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
    """Compile PyTorch and ONNX models to INT8 for ONNX Runtime and OpenVINO."""


@app.command("compile", epilog=EXIT_CODES_HELP)
def compile_model(
    model: Annotated[Path, typer.Argument(help="An .onnx file; with --trust-input a .pt, .pth or .pt2 file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an artifact in it is replaced.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name or YAML file.")] = "w8a8-dynamic",
    backend: Annotated[str, typer.Option("--backend", "-b", help="onnxruntime or openvino.")] = "onnxruntime",
    calibration: Annotated[
        Path | None, typer.Option("--calibration", "-c", help="An .npz file of stacked samples, or a folder of .npz.")
    ] = None,
    num_calibration_samples: Annotated[
        int | None, typer.Option(min=1, help="Most samples that are read; all when left out.")
    ] = None,
    calibration_cache: Annotated[
        Path | None, typer.Option(help="Folder where statistics of the activations are kept between runs.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Layer that stays float: a name, or re: and a pattern. Repeatable.")
    ] = None,
    targets: Annotated[
        list[str] | None, typer.Option(help="Quantize only this layer: a name, or re: and a pattern. Repeatable.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Processor to compile for, such as avx2.")] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check each pass and the artifact.")] = True,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the recipe's passes, key=value. Repeatable.")
    ] = None,
    trust_input: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model; prints what was quantized, what it cost and what it won."""
    with _failures(as_json, debug):
        from qcompile import cli_inputs

        with _progress() as progress:
            artifact = qcompile.compile(
                cli_inputs.model_file(model),
                cli_inputs.recipe(recipe, settings or ()),
                backend=backend,
                calibration=cli_inputs.calibration(calibration, num_calibration_samples, calibration_cache),
                ignore=tuple(ignore or ()),
                targets=tuple(targets or ()),
                output=output,
                target=target,
                verify=verify,
                trust_input=trust_input,
                progress=progress,
            )
        if as_json:
            paths = {"path": str(artifact.path), "model_path": str(artifact.model_path)}
            _print_json(paths | {"report": artifact.report.to_dict()})
        else:
            typer.echo(artifact.report.summary())
            typer.echo(f"{artifact.model_path}")


@app.command(epilog=EXIT_CODES_HELP)
def bench(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    against: Annotated[Path | None, typer.Option(help="The float .onnx model, measured in turns with it.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz file with one feed; made up when left out.")] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="Size of a free dimension of the made-up feed, name=size. Repeatable.")
    ] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 5.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the latency of an artifact, and of the float model on the same runtime: medians, taken in turns."""
    with _failures(as_json, debug):
        from qcompile import artifact, backends, cli_inputs, frontend
        from qcompile.latency import interleaved_medians

        opened = artifact.load(folder)
        inputs = opened.manifest.inputs
        sizes = cli_inputs.dimensions(dim or (), inputs)
        if data and sizes:
            raise errors.RecipeError(f"--dim {dim[0]}" if dim else "", "--data gives the feed", "Leave one of them out")
        feed = cli_inputs.read_sample(data) if data else cli_inputs.made_up_feed(inputs, sizes)
        sessions = {"quantized": opened.open_session(threads=threads)}
        if against is not None:
            model = frontend.trace(cli_inputs.model_file(against))
            sessions["float"] = backends.get(opened.backend).open_session(model, threads=threads)
        with _progress() as progress:
            medians = interleaved_medians(
                {name: lambda session=session: session.run(feed) for name, session in sessions.items()},  # type: ignore[misc]
                seconds=seconds,
                progress=lambda fraction: progress("measuring", fraction),
            )
        _print_latency(medians, opened.backend, as_json)


@app.command(epilog=EXIT_CODES_HELP)
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe as YAML, to start your own from.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the named recipes, or print one as YAML."""
    with _failures(as_json, debug):
        from qcompile.recipe import Recipe, named_recipes

        if name is not None:
            chosen = Recipe.from_name(name)
            _print_json(chosen.to_data()) if as_json else typer.echo(chosen.to_yaml(), nl=False)
            return
        known = {each: Recipe.from_name(each) for each in named_recipes()}
        if as_json:
            _print_json({each: found.to_data() for each, found in known.items()})
            return
        table = Table("recipe", "what it does", "steps", box=None, header_style="bold", pad_edge=False, padding=(0, 2))
        for each, found in known.items():
            passes = ", ".join(step.pass_name for step in found.steps)
            table.add_row(Text(each, no_wrap=True), named_recipes()[each], passes or "-")
        Console().print(table)


@app.command(epilog=EXIT_CODES_HELP)
def report(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page to this file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the report of an artifact, or write it as an HTML page."""
    with _failures(as_json, debug):
        from qcompile.artifact import load

        found = load(folder).report
        if html is not None:
            found.save_html(html)
        if as_json:
            _print_json(found.to_dict())
        else:
            typer.echo(found.summary() if html is None else str(html))


def exit_code(error: errors.QCompileError) -> int:
    """Return the exit code of the nearest class of the error that has one."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def main() -> None:
    """Run the command line."""
    app()


@contextlib.contextmanager
def _failures(as_json: bool, debug: bool) -> Iterator[None]:
    """Turn a typed error into one clear message and its exit code. Any other error is a bug and keeps its traceback."""
    try:
        yield
    except errors.QCompileError as error:
        if debug:
            traceback.print_exc()
        if as_json:
            fields = {"subject": error.subject, "reason": error.reason, "mend": error.mend}
            _print_json({"error": {"type": type(error).__name__, **fields}})
        else:
            _print_error(error)
        raise typer.Exit(exit_code(error)) from error


def _print_error(error: errors.QCompileError) -> None:
    console = Console(stderr=True, highlight=False)
    message = Text.assemble(("error: ", "bold red"), (error.subject, "bold"), f": {error.reason}\n{error.mend}.")
    console.print(message, soft_wrap=True)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=dataclasses.asdict))


def _print_latency(medians: dict[str, float], backend: str, as_json: bool) -> None:
    latency: dict[str, Any] = {f"{name}_ms": round(value, 4) for name, value in medians.items()}
    if "float" in medians:
        latency["speedup"] = round(medians["float"] / medians["quantized"], 3)
    if as_json:
        _print_json({"backend": backend, **latency})
        return
    for name, value in sorted(medians.items()):
        typer.echo(f"{name:<10} {value:8.3f} ms")
    if "speedup" in latency:
        typer.echo(f"{latency['speedup']:.2f} times as fast as float on {backend}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on the standard error of a terminal: the stage that runs, how much of it is done, and the time."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)
