"""The command that looks into models and artifacts: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qcompile.cli.console import Debug, Json, Trust, failures, print_json, progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qcompile.inspection import ArtifactFacts, ModelFacts
    from qcompile.manifest import Port

SHOWN = 40
"""Most layers that are printed; --json has all."""


def inspect(
    path: Annotated[Path, typer.Argument(help="An .onnx file, with --trust-input a .pt2 file; or an artifact folder.")],
    trust_input: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is in a model: operators, layers, which recipes apply; or what an artifact is. Nothing is run."""
    with failures(as_json, debug):
        from qcompile import inspection
        from qcompile.cli import inputs
        from qcompile.frontend.huggingface import is_folder
        from qcompile.manifest import MANIFEST

        with progress_bar() as progress:
            progress(f"reading {path.name}", 0.0)
            if path.is_dir() and ((path / MANIFEST).is_file() or not is_folder(path)):
                facts: ArtifactFacts | ModelFacts = inspection.inspect_artifact(path)
            else:
                facts = inspection.inspect_model(inputs.model_file(path), trust_input=trust_input)
        if as_json:
            print_json(facts)
        elif isinstance(facts, inspection.ModelFacts):
            _print_model(facts)
        else:
            _print_artifact(facts)


def _print_model(facts: ModelFacts) -> None:
    from qcompile.report.text import human_bytes

    opsets = ", ".join(f"{domain or 'onnx'} {version}" for domain, version in facts.opsets.items())
    typer.echo(f"{facts.name or 'model'} · {human_bytes(facts.bytes)} · opset {opsets}")
    _print_ports(facts.inputs, facts.outputs)
    _print_counts("operators", facts.operators)
    if facts.functions:
        typer.echo(f"functions {', '.join(facts.functions)}")
    if facts.quantized:
        typer.echo(f"quantized already: {facts.quantized} products, which compile leaves as they are")
    title = f"{len(facts.layers)} layers" + (f", the first {SHOWN}" if len(facts.layers) > SHOWN else "")
    table = _table(title, "operator", "weight", "type", "layer")
    for layer in facts.layers[:SHOWN]:
        table.add_row(layer.operator, "×".join(map(str, layer.shape)), layer.dtype, Text(layer.name))
    recipes = _table("Recipes", "recipe", "backend", "layers", "to know")
    for found in facts.recipes:
        needs = f"needs {found.needs}" if found.needs else ""
        needs = f"better with {found.better_with}" if found.better_with else needs
        layers = "-" if found.refusal else f"{found.layers} of {len(facts.layers)}"
        recipes.add_row(found.recipe, found.backend, layers, Text(found.refusal or needs))
    for each in (table, recipes):
        Console().print(each)


def _print_artifact(facts: ArtifactFacts) -> None:
    from qcompile.report.text import human_bytes, stored_bits

    target = f" · {facts.target}" if facts.target else ""
    typer.echo(f"artifact {facts.path} · {facts.recipe or 'recipe'} · {facts.backend}{target}")
    _print_ports(facts.inputs, facts.outputs)
    _print_counts("layers", facts.layers)
    for line in stored_bits(facts.bits_per_weight or {}):
        typer.echo(f"weights   {line}")
    typer.echo(f"made by   {', '.join(f'{name} {version}' for name, version in facts.versions.items())}")
    typer.echo(f"data      {facts.calibration or 'no calibration data'}")
    known = (
        "against the reference of its arithmetic" if facts.can_be_verified else "with --against the float model only"
    )
    typer.echo(f"verify    {known}")
    for name, size in facts.files.items():
        loaded = ", which the runtime loads" if name == facts.model_file else ""
        typer.echo(f"file      {name}, {human_bytes(size)}{loaded}")


def _print_ports(inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    for kind, ports in (("input", inputs), ("output", outputs)):
        for port in ports:
            sizes = (
                "any shape" if port.shape is None else "[" + ", ".join(str(size or "?") for size in port.shape) + "]"
            )
            typer.echo(f"{kind:<9} {port.name}: {port.dtype} {sizes}")


def _print_counts(title: str, counts: Mapping[str, int]) -> None:
    typer.echo(f"{title:<9} {', '.join(f'{count} {name}' for name, count in counts.items()) or 'none'}")


def _table(title: str, *columns: str) -> Table:
    table = Table(
        *columns,
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="",
        pad_edge=False,
    )
    table.columns[-1].overflow = "fold"
    return table
