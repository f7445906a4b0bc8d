"""Compile all-MiniLM-L6-v2 with three recipes for two runtimes and show what that costs and wins.

Everything is left in out/demo: one folder per artifact, one HTML page per report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import qcompile
from qcompile.errors import MissingDependencyError
from qcompile.latency import interleaved_medians
from qcompile.models import minilm, sentence_similarity, texts

RECIPES = ("w8a8-static", "w8a8-dynamic", "smoothquant-o3")
BACKENDS = ("onnxruntime", "openvino")
OUTPUT = Path("out/demo")
CALIBRATION_SAMPLES, HELD_OUT, MEASURING_SECONDS = 64, 32, 5.0


def main() -> None:
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("loading all-MiniLM-L6-v2", total=2 + len(BACKENDS) * (len(RECIPES) + 2))
        encoder = minilm.load()
        progress.update(task, advance=1, description="tracing all-MiniLM-L6-v2")
        model = qcompile.trace(
            encoder.module, example_inputs=encoder.example(), dynamic_shapes=encoder.dynamic_shapes()
        )
        calibration = list(encoder.batches(texts.calibration_texts(CALIBRATION_SAMPLES)))
        progress.update(task, advance=1)
        table = Table("recipe", "runtime", title="all-MiniLM-L6-v2, 128 tokens", title_justify="left")
        for column in ("MB", "float ms", "INT8 ms", "times float", "cosine to float", "Lee's documents"):
            table.add_column(column, justify="right")
        for backend in BACKENDS:
            artifacts = {}
            for recipe in ("float", *RECIPES):
                progress.update(task, description=f"compiling {recipe} for {backend}")
                artifacts[recipe] = qcompile.compile(
                    model,
                    recipe,
                    backend=backend,
                    calibration=calibration,
                    output=OUTPUT / f"{recipe}-{backend}",
                    progress=teller(progress, task, f"{recipe} for {backend}"),
                )
                artifacts[recipe].report.save_html(OUTPUT / f"{recipe}-{backend}.html")
                progress.advance(task)
            progress.update(task, description=f"measuring on {backend}")
            for row in measure(encoder, artifacts):
                table.add_row(*row[:1], backend, *row[1:])
            table.add_section()
            progress.advance(task)
    console.print(table)
    console.print(f"Artifacts and reports: {OUTPUT.resolve()}")


def teller(progress: Progress, task: TaskID, name: str) -> Callable[[str, float], None]:
    """Show the stage that the compiler is in."""
    return lambda stage, _part: progress.update(task, description=f"{name}: {stage}")


def measure(encoder: minilm.SentenceEncoder, artifacts: dict[str, qcompile.Artifact]) -> list[tuple[str, ...]]:
    """Size, latency, fidelity and task score of every artifact, as the cells of a row; "float" is the reference."""
    feed = next(encoder.batches(texts.held_out_texts(1)))
    runs = {recipe: functools.partial(artifact.run, feed) for recipe, artifact in artifacts.items()}
    latency = interleaved_medians(runs, seconds=MEASURING_SECONDS)
    reference = embeddings(encoder, artifacts["float"], texts.held_out_texts(HELD_OUT))
    rows: list[tuple[str, ...]] = []
    for recipe, artifact in artifacts.items():
        cosine = (reference * embeddings(encoder, artifact, texts.held_out_texts(HELD_OUT))).sum(axis=1).mean()
        megabytes = sum(file.stat().st_size for file in artifact.path.glob(f"{artifact.model_path.stem}.*")) / 1e6
        quantized = "" if recipe == "float" else f"{latency[recipe]:.2f}"
        times = f"{latency['float'] / latency[recipe]:.2f}"
        cells = (f"{megabytes:.1f}", f"{latency['float']:.2f}", quantized, times, f"{cosine:.4f}")
        rows.append((recipe, *cells, task_score(encoder, artifact)))
    return rows


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
        return "not installed"


if __name__ == "__main__":
    main()
