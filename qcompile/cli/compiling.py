"""The commands that make an artifact: compile, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import qcompile
from qcompile.cli.console import Debug, Json, Trust, failures, print_json, progress_bar


def compile_model(
    model: Annotated[
        Path,
        typer.Argument(
            help="An .onnx or .gguf file, or a Hugging Face folder; with --trust-input a .pt, .pth or .pt2 file."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; an artifact in it is replaced.")],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name or YAML file.")] = "w8a8-dynamic",
    backend: Annotated[str, typer.Option("--backend", "-b", help="onnxruntime, openvino or triton.")] = "onnxruntime",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", "-c", help="An .npz file of stacked samples, a folder of .npz, or a .txt."),
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
    output_format: Annotated[
        str | None,
        typer.Option(
            help="model, or genai: a folder for onnxruntime-genai or openvino_genai, and for chat: the default where"
            " there is a tokenizer."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Processor to compile for, such as avx2.")] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Keep float what it takes that the cosine to float's outputs drops by no more than this."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check each pass and the artifact.")] = True,
    tune: Annotated[
        str, typer.Option(help="measure: what is faster in float here stays float; table: by a table; none.")
    ] = "measure",
    aot: Annotated[
        bool,
        typer.Option("--aot", help="Triton: also compile machine code for the device here."),
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the recipe's passes, key=value. Repeatable.")
    ] = None,
    trust_input: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model; prints what was quantized, what it cost and what it won."""
    with failures(as_json, debug):
        from qcompile.cli import inputs

        with progress_bar() as progress:
            artifact = qcompile.compile(
                inputs.model_file(model),
                inputs.recipe(recipe, settings or ()),
                backend=backend,
                calibration=inputs.calibration(calibration, num_calibration_samples, calibration_cache, model),
                ignore=tuple(ignore or ()),
                targets=tuple(targets or ()),
                output=output,
                output_format=output_format,
                target=target,
                accuracy=None if max_drop is None else {"max_drop": max_drop},
                verify=verify,
                trust_input=trust_input,
                tune=tune,
                aot=aot,
                progress=progress,
            )
        if as_json:
            paths = {"path": str(artifact.path), "model_path": str(artifact.model_path)}
            print_json(paths | {"report": artifact.report.to_dict()})
        else:
            typer.echo(artifact.report.summary())
            typer.echo(f"{artifact.path if artifact.talks else artifact.model_path}")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe as YAML, to start your own from.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the named recipes, or print one as YAML."""
    with failures(as_json, debug):
        from qcompile.recipe import Recipe, named_recipes

        if name is not None:
            chosen = Recipe.from_name(name)
            print_json(chosen.to_data()) if as_json else typer.echo(chosen.to_yaml(), nl=False)
            return
        known = {each: Recipe.from_name(each) for each in named_recipes()}
        if as_json:
            print_json({each: found.to_data() for each, found in known.items()})
            return
        table = Table("recipe", "what it does", "steps", box=None, header_style="bold", pad_edge=False, padding=(0, 2))
        for each, found in known.items():
            passes = ", ".join(step.pass_name for step in found.steps)
            table.add_row(Text(each, no_wrap=True), named_recipes()[each], passes or "-")
        Console().print(table)
