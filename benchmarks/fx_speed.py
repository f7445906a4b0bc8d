"""The lowering to torch.fx on the processor: seconds that it takes, and what its module takes beside the original.

Eager, float32, two threads, one process: the original module of torch and the lowered one take turns, and the medians
count. The graph that is lowered is that of `qcompile.trace`, in canonical form.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import qcompile
from benchmarks.results import Benchmark, Goal, Row
from qcompile.backends.fx import lower
from qcompile.latency import interleaved_medians
from qcompile.models import crepe, efficientnet_lite, minilm, smollm2, texts, whisper
from qcompile.models.reference import Feed, dynamic_axes

THREADS, SECONDS, LENGTH = 2, 10.0, 128
MOST_SECONDS = {"MiniLM": 3.0, "SmolLM2": 15.0}
MOST_TIME = 1.2
"""Of the original module's."""

Loaded = tuple[torch.nn.Module, Feed, dict[str, dict[int, object]] | None, Feed]
"""A module, what it is traced with, its dynamic axes, and what it is timed on."""


def run(folder: Path) -> Benchmark:  # noqa: ARG001 - nothing is written
    """Lower each model, and time it beside the original."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        rows = list(_rows())
    finally:
        torch.set_num_threads(before)
    return Benchmark("The lowering to torch.fx, and its modules in eager torch beside the originals", rows, goals(rows))


def goals(rows: Sequence[Row]) -> list[Goal]:
    """The lowering is quick, and what it makes as fast as the original."""
    lowering = [
        Goal(
            f"{row['model']}, seconds to lower", float(row["s to lower"]), MOST_SECONDS[str(row["model"])], at_most=True
        )
        for row in rows
        if row["model"] in MOST_SECONDS
    ]
    times = [
        Goal(f"{row['model']}, time over torch's", float(row["of torch's"]), MOST_TIME, at_most=True) for row in rows
    ]
    return lowering + times


def _rows() -> Iterator[Row]:
    for name, load in LOADERS.items():
        module, example, shapes, feed = load()
        model = qcompile.trace(module, example_inputs=example, dynamic_shapes=shapes)
        start = time.perf_counter()
        lowered = lower(model)
        seconds = time.perf_counter() - start
        tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in feed.items()}
        given = [tensors[key] for key in lowered.meta["input_names"]]
        with torch.inference_mode():
            runs = {"torch": functools.partial(module, **tensors), "fx": functools.partial(lowered, *given)}
            times = interleaved_medians(runs, seconds=SECONDS)
        yield {
            "model": name,
            "s to lower": seconds,
            "ms, torch": times["torch"],
            "ms, fx": times["fx"],
            "of torch's": times["fx"] / times["torch"],
        }


def _encoder() -> Loaded:
    encoder = minilm.load()
    (feed,) = encoder.batches(texts.held_out_texts(1), length=LENGTH)
    return encoder.module, encoder.example(), encoder.dynamic_shapes(), feed


def _language_model() -> Loaded:
    model = smollm2.load()
    (feed,) = model.batches([" ".join(texts.held_out_texts(4))], length=LENGTH)
    return model.module, model.example(), model.dynamic_shapes(), feed


def _photo() -> Loaded:
    found = efficientnet_lite.load(2, 1, 1)
    assert isinstance(found.model, torch.nn.Module)
    return found.model, found.example, found.dynamic_shapes, found.held_out[0]


def _tone() -> Loaded:
    found = crepe.load(2, 1)
    assert isinstance(found.model, torch.nn.Module)
    return found.model, found.example, found.dynamic_shapes, found.held_out[0]


def _heard() -> Loaded:
    # Whisper's encoder takes 30 s of 80 mel bands, no more and no less.
    feed = {"input_features": np.random.default_rng(0).normal(size=(2, 80, 3000)).astype(np.float32)}
    one = {name: array[:1] for name, array in feed.items()}
    return whisper.load().encoder, feed, dynamic_axes(feed, axes=(0,)), one


def _spoken() -> Loaded:
    speech = whisper.load()
    (feed,) = speech.batches([" ".join(texts.held_out_texts(2))], length=LENGTH)
    return speech.module, speech.example(), speech.dynamic_shapes(), feed


LOADERS: Mapping[str, Callable[[], Loaded]] = {
    "MiniLM": _encoder,
    "SmolLM2": _language_model,
    "EfficientNet-Lite0": _photo,
    "CREPE": _tone,
    "Whisper encoder": _heard,
    "Whisper decoder": _spoken,
}
