"""The command that measures language models: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompile.cli.console import Debug, Json, Threads, Trust, failures, print_json, progress_bar


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Artifact folder of a language model.")],
    text: Annotated[Path, typer.Option(help="Text file, UTF-8.")],
    against: Annotated[
        Path | None, typer.Option(help="The float model: a Hugging Face folder, a .gguf or an .onnx file.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json or its folder; when left out, that of the artifact or of the float model."),
    ] = None,
    window: Annotated[int, typer.Option(help="Most tokens that are read at once.")] = 512,
    stride: Annotated[int, typer.Option(help="Tokens from one window to the next, less than the window.")] = 256,
    threads: Threads = None,
    trust_input: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how well a language model predicts a text: nats per token and perplexity.

    With the float model also how far the predictions are from its own: the Kullback-Leibler divergence, and how often
    both find the same token the most likely. Each token is scored once, with at least window - stride tokens before it.
    """
    with failures(as_json, debug):
        from qcompile.cli import inputs
        from qcompile.evaluation import evaluate as measure

        with progress_bar() as progress:
            found = measure(
                folder,
                text,
                against=None if against is None else inputs.model_file(against),
                tokenizer=tokenizer,
                window=window,
                stride=stride,
                threads=threads,
                trust_input=trust_input,
                progress=progress,
            )
        print_json(found.to_dict()) if as_json else typer.echo(found.summary(), nl=False)
