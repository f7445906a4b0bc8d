"""Compile all-MiniLM-L6-v2 with three recipes for two runtimes, show what that costs and wins, and let SmolLM2 talk.

Everything is left in out/demo: one folder per artifact, one HTML page per report. Sizes, latencies and speed-ups are
those of the reports, so that the table, the pages and `qcompile report FOLDER` say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import qcompile
from qcompile.chat import Message
from qcompile.cli.chatting import speed
from qcompile.errors import MissingDependencyError
from qcompile.models import minilm, sentence_similarity, smollm2, texts

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o3")
BACKENDS = ("onnxruntime", "openvino")
OUTPUT = Path("out/demo")
TALKING = OUTPUT / "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
CALIBRATION_SAMPLES, HELD_OUT = 64, 32
COLUMNS = ("MB", "float ms", "INT8 ms", "speed-up", "cosine", "Lee")
LEGEND = (
    "ms: 128 tokens; float was measured beside each artifact, on the same runtime",
    "cosine: embeddings to those of float, on text that was not calibrated on",
    "Lee: agreement with people on Lee's 50 documents, Pearson's r (-: no data)",
)


def main() -> None:
    console = Console()
    tables, pages = [], []
    bar = (TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.completed}/{task.total}"))
    with Progress(*bar, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("loading the model", total=3 + len(BACKENDS) * (len(RECIPES) + 2))
        encoder = minilm.load()
        progress.update(task, advance=1, description="tracing the model")
        model = qcompile.trace(
            encoder.module, example_inputs=encoder.example(), dynamic_shapes=encoder.dynamic_shapes()
        )
        model.graph.name = "all-MiniLM-L6-v2"  # what the reports call it
        calibration = list(encoder.batches(texts.calibration_texts(CALIBRATION_SAMPLES)))
        progress.advance(task)
        for backend in BACKENDS:
            artifacts = {}
            for recipe in ("float", *RECIPES):
                artifacts[recipe] = qcompile.compile(
                    model,
                    recipe,
                    backend=backend,
                    calibration=calibration,
                    output=OUTPUT / f"{recipe}-{backend}",
                    progress=teller(progress, task, f"{recipe}, {backend}"),
                )
                page = OUTPUT / f"{recipe}-{backend}.html"
                artifacts[recipe].report.save_html(page)
                pages.append(page)
                progress.advance(task)
            progress.update(task, description=f"judging, {backend}")
            reference = embeddings(encoder, artifacts["float"], texts.held_out_texts(HELD_OUT))
            rows = {recipe: row(encoder, artifact, reference) for recipe, artifact in artifacts.items()}
            tables.append(table(backend, rows))
            progress.advance(task)
        talking = language_model(teller(progress, task, "keep, SmolLM2"))
        progress.advance(task)
    for each in tables:
        console.print(each, "")
    for line in LEGEND:
        console.print(line, style="dim", highlight=False)
    for title, paths in (("Artifacts", [page.with_suffix("") for page in pages]), ("Reports", pages)):
        console.print(f"\n{title}:")
        for path in paths:
            console.print(str(path.resolve()), soft_wrap=True, highlight=False, markup=False)
    console.print("\nA language model, its 4-bit weights as its GGUF file has them, on onnxruntime:")
    for line in talking:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def language_model(tell: Callable[[str, float], None]) -> list[str]:
    """Compile a language model and ask it; what it said, how fast, and last how to talk to it, or why it is not here.

    It is not verified and timed against float, which takes minutes for a model of this size.
    """
    try:
        file = smollm2.gguf_file()
    except MissingDependencyError as error:
        return [str(error)]
    artifact = qcompile.compile(file, "keep", output=TALKING, verify=False, progress=tell)
    answer = artifact.open_chat().answer([Message("user", QUESTION)], max_new_tokens=64, show=lambda _piece: True)
    return [f"> {QUESTION}", answer.text, speed(answer), f"qcompile chat {TALKING.resolve()}"]


def teller(progress: Progress, task: TaskID, name: str) -> Callable[[str, float], None]:
    """Show the stage that the compiler is in, without the settings of a pass."""
    return lambda stage, _part: progress.update(task, description=f"{name}: {stage.partition('(')[0]}")


def table(backend: str, rows: Mapping[str, Sequence[str]]) -> Table:
    """One runtime's recipes, narrow enough that nothing is cut off in a terminal of 80 characters."""
    made = Table("recipe", title=f"all-MiniLM-L6-v2 on {backend}", title_justify="left", title_style="bold")
    for column in COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for recipe, cells in rows.items():
        made.add_row(recipe, *cells)
    return made


def row(encoder: minilm.SentenceEncoder, artifact: qcompile.Artifact, reference: np.ndarray) -> list[str]:
    """Size, latencies and speed-up of the artifact as its report has them, fidelity to the reference, task score."""
    latency, size = artifact.report.latency, artifact.report.size
    cosine = (reference * embeddings(encoder, artifact, texts.held_out_texts(HELD_OUT))).sum(axis=1).mean()
    judged = [f"{cosine:.4f}", task_score(encoder, artifact)]
    if artifact.report.recipe == "float":
        return [f"{size['float_bytes'] / 1e6:.1f}", f"{latency['float_ms']:.3g}", "", "", *judged]
    measured = [f"{latency['float_ms']:.3g}", f"{latency['quantized_ms']:.3g}"]
    speed_up = f"{latency['float_ms'] / latency['quantized_ms']:.2f}"
    return [f"{size['quantized_bytes'] / 1e6:.1f}", *measured, speed_up, *judged]


def embeddings(encoder: minilm.SentenceEncoder, artifact: qcompile.Artifact, passages: Sequence[str]) -> np.ndarray:
    parts = []
    for feed in encoder.batches(passages):
        (hidden,) = artifact.run(feed).values()
        parts.append(minilm.embed(hidden, feed["attention_mask"]))
    return np.concatenate(parts)


def task_score(encoder: minilm.SentenceEncoder, artifact: qcompile.Artifact) -> str:
    """Correlation of the similarity of Lee's 50 documents with what people said."""
    try:
        return f"{sentence_similarity.lee_correlation(lambda passages: embeddings(encoder, artifact, passages)):.3f}"
    except MissingDependencyError:
        return "-"


if __name__ == "__main__":
    main()
