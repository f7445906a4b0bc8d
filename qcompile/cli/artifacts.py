"""The commands about an artifact: verify, bench, report, sign, bom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import qcompile
from qcompile import errors
from qcompile.cli.console import Debug, Json, RunPackage, Threads, Trust, failures, print_json, progress_bar

if TYPE_CHECKING:
    from qcompile.artifact import Artifact


def verify(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    against: Annotated[Path | None, typer.Option(help="The float model: an .onnx file.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Samples to compare with it on, as in compile; the one in the artifact when left out."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file; the artifact must be signed with the other half of this key.")
    ] = None,
    trust_input: Trust = False,
    run_package: RunPackage = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify an artifact on this machine: its files, what the runtime computes, its accuracy against the float model.

    The runtime computes with its optimizations off and on what compile wrote down of the quantized graph, and more than
    two quantization steps from its meaning is an error.
    """
    with failures(as_json, debug):
        from qcompile.cli import inputs

        with progress_bar() as progress:
            found = qcompile.verify(
                qcompile.load(folder, public_key=public_key, trust_input=True) if run_package else folder,
                against=None if against is None else inputs.model_file(against),
                data=inputs.calibration(data, None, None),
                public_key=public_key,
                trust_input=trust_input,
                progress=progress,
            )
        print_json(found.to_dict()) if as_json else typer.echo(found.summary(), nl=False)


def bench(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    against: Annotated[Path | None, typer.Option(help="The float .onnx model, measured in turns with it.")] = None,
    data: Annotated[Path | None, typer.Option(help="An .npz file with one feed; made up when left out.")] = None,
    dim: Annotated[
        list[str] | None, typer.Option(help="Size of a free dimension of the made-up feed, name=size. Repeatable.")
    ] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 5.0,
    run_package: RunPackage = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the latency of an artifact, and of the float model on the same runtime: medians, taken in turns.

    Of a folder for generation: the time to the first token of an answer, and tokens per second behind it.
    """
    with failures(as_json, debug):
        from qcompile import artifact, backends, frontend
        from qcompile.cli import inputs
        from qcompile.latency import interleaved_medians

        seconds = inputs.measured_seconds(seconds)
        opened = artifact.load(folder, trust_input=run_package)
        if opened.talks:
            _check_no_options({"--against": against, "--data": data, "--dim": dim})
            _bench_answers(opened, threads, seconds, as_json)
            return
        ports = opened.manifest.inputs
        sizes = inputs.dimensions(dim or (), ports)
        if data and sizes:
            raise errors.RecipeError(f"--dim {dim[0]}" if dim else "", "--data gives the feed", "Leave one of them out")
        feed = inputs.read_sample(data) if data else inputs.made_up_feed(ports, sizes)
        with progress_bar() as progress:
            progress("loading", 0.0)
            sessions = {"quantized": opened.open_session(threads=threads)}
            if against is not None:
                model = frontend.trace(inputs.model_file(against))
                sessions["float"] = backends.get(opened.backend).open_session(model, threads=threads)
            medians = interleaved_medians(
                {name: functools.partial(session.run, feed) for name, session in sessions.items()},
                seconds=seconds,
                progress=lambda fraction: progress("measuring", fraction),
            )
        _print_latency(medians, opened.backend, as_json)


def _check_no_options(options: Mapping[str, object]) -> None:
    """Raise RecipeError for options of `bench` that mean nothing for a model that talks."""
    for option, given in options.items():
        if given:
            reason = "a folder for generation is measured by its answers"
            raise errors.RecipeError(option, reason, "Leave it out; qcompile evaluate --against compares with float")


def _bench_answers(opened: Artifact, threads: int | None, seconds: float, as_json: bool) -> None:
    from qcompile.chat import answer_speed

    with progress_bar() as progress:
        progress("loading", 0.0)
        talk = opened.open_chat(threads=threads)
        found = answer_speed(talk, seconds=seconds, progress=lambda part: progress("measuring", part))
    if as_json:
        print_json({"backend": opened.backend, **dataclasses.asdict(found)})
        return
    typer.echo(f"first token {found.first_token_s:8.3f} s, of {found.prompt_tokens:g} read")
    typer.echo(f"then        {found.tokens_per_s:8.1f} tokens/s, {found.new_tokens:g} made")
    typer.echo(f"medians of {found.answers} answers on {opened.backend}")


def report(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page to this file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the report of an artifact, or write it as an HTML page."""
    with failures(as_json, debug):
        from qcompile.artifact import load
        from qcompile.manifest import PAGE

        found = load(folder).report
        if html is not None:
            if html.resolve().parent == folder.resolve() and html.name != PAGE:
                reason = "it lies in the folder of the artifact, where no other file may be"
                raise errors.ArtifactError(str(html), reason, f"Write it beside that folder, or as {PAGE} in it")
            found.save_html(html)
        if as_json:
            print_json(found.to_dict())
        else:
            typer.echo(found.summary() if html is None else str(html))


def sign(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    key: Annotated[Path, typer.Option(help="PEM file with the private Ed25519 key.")],
    password: Annotated[
        str | None, typer.Option(envvar="QCOMPILE_KEY_PASSWORD", help="Of that file; better given in the environment.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Sign an artifact: everything that its runtime reads, offline. `verify --public-key` checks it."""
    with failures(as_json, debug):
        from qcompile.artifact_signature import sign as sign_artifact

        path = sign_artifact(folder, key, password=None if password is None else password.encode())
        print_json({"path": str(path)}) if as_json else typer.echo(str(path))


def bom(
    folder: Annotated[Path, typer.Argument(help="Artifact folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, outside of the folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the bill of materials of an artifact: CycloneDX 1.6, with the model, its files and what made it."""
    with failures(as_json, debug):
        from qcompile.artifact import load
        from qcompile.artifact_bom import save_bom

        save_bom(load(folder), output)
        print_json({"path": str(output)}) if as_json else typer.echo(str(output))


def _print_latency(medians: dict[str, float], backend: str, as_json: bool) -> None:
    latency: dict[str, Any] = {f"{name}_ms": round(value, 4) for name, value in medians.items()}
    if "float" in medians:
        latency["speedup"] = round(medians["float"] / medians["quantized"], 3)
    if as_json:
        print_json({"backend": backend, **latency})
        return
    for name, value in sorted(medians.items()):
        typer.echo(f"{name:<10} {value:8.3f} ms")
    if "speedup" in latency:
        typer.echo(f"{latency['speedup']:.2f} times as fast as float on {backend}")
