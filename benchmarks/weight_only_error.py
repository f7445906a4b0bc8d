"""Error of MiniLM and of Whisper base's decoder with weights in groups of 64, symmetric, 4 and 3 bits.

1 - cosine to the float model, on text that nothing was calibrated on: of MiniLM's embeddings, and of the decoder's
logits at every token. Whisper hears random sounds, for want of speech. NNCF has no 3 bits, and what it does with data
fails on a model that came from ONNX; embeddings and the head that reads Whisper's are its and our 8 bits.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch

import qcompile
from benchmarks import encoder
from benchmarks.results import Benchmark, Goal, Row
from benchmarks.sessions import Run, open_openvino
from benchmarks.weight_only_loss import BITS, GROUP_SIZE, rounded
from qcompile.models import minilm, texts, whisper
from qcompile.recipe import Recipe
from qcompile.session import Feed

RECIPES = ("w4a16-rtn", "w4a16-hqq", "w4a16-awq", "w4a16-gptq", "w4a16-learned")
CALIBRATION, HELD_OUT = 16, 16
EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and how its error is measured.

    Attributes:
        name: for the table.
        model: has `module`, `example()` and `dynamic_shapes()`.
        calibration: feeds.
        error: from two ways of running it to 1 - cosine.
    """

    name: str
    model: Any
    calibration: Sequence[Feed]
    error: Callable[[Run, Run], float]


def run(folder: Path) -> Benchmark:
    """Measure plain rounding, NNCF and every recipe, in both widths."""
    rows = [row for subject in _subjects() for row in _rows(subject, folder)]
    return Benchmark(f"MiniLM and Whisper's decoder, symmetric, groups of {GROUP_SIZE}, 1 - cosine", rows, _goals(rows))


def _subjects() -> list[Subject]:
    sentences, speech = minilm.load(), whisper.load()
    heard = list(speech.batches(texts.held_out_texts(HELD_OUT), seed=1))

    def logits_error(candidate: Run, reference: Run) -> float:
        return float(np.mean([1 - _cosine(candidate(feed)[0], reference(feed)[0]).mean() for feed in heard]))

    return [
        Subject(
            "MiniLM",
            sentences,
            list(sentences.batches(texts.calibration_texts(encoder.CALIBRATION_SAMPLES))),
            lambda candidate, reference: encoder.error(sentences, candidate, reference),
        ),
        Subject("Whisper's decoder", speech, list(speech.batches(texts.calibration_texts(CALIBRATION))), logits_error),
    ]


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.asarray((one * other).sum(axis=-1) / lengths)


def _rows(subject: Subject, folder: Path) -> list[Row]:
    module = subject.model.module
    reference = _in_torch(module)
    file = encoder.export(subject.model, folder / f"{subject.name}.onnx", 23)
    shapes = subject.model.dynamic_shapes()
    traced = qcompile.trace(module, example_inputs=subject.model.example(), dynamic_shapes=shapes)
    rows: list[Row] = []
    for bits in BITS:
        found = {"round to nearest": subject.error(_in_torch(_rounded(module, bits)), reference)}
        if bits == 4:
            found["NNCF INT4_SYM"] = subject.error(open_openvino(_compressed(file), settings=EXACT), reference)
        for name in RECIPES:
            recipe = Recipe.from_name(name, bits=bits, group_size=GROUP_SIZE, sym=True)
            target = folder / f"{subject.name}-{name}-{bits}"
            artifact = qcompile.compile(
                traced, recipe, backend="openvino", calibration=subject.calibration, output=target, verify=False
            )
            found[f"qcompile {name}"] = subject.error(
                lambda feed, run=artifact.run: list(run(feed).values()), reference
            )
        rows += [
            {"model": subject.name, "method": method, "bits": float(bits), "1 - cosine": error}
            for method, error in found.items()
        ]
    return rows


def _in_torch(module: torch.nn.Module) -> Run:
    @torch.no_grad()
    def run_module(feed: Feed) -> list[np.ndarray]:
        result = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return [(result if isinstance(result, torch.Tensor) else result[0]).numpy()]

    return run_module


def _rounded(module: torch.nn.Module, bits: int) -> torch.nn.Module:
    other = copy.deepcopy(module)
    other.load_state_dict(rounded(other, bits), strict=False)
    return other


def _compressed(file: Path) -> Path:
    model = nncf.compress_weights(
        openvino.Core().read_model(file),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP_SIZE,
        ratio=1.0,
    )
    output = file.with_suffix(".nncf.xml")
    openvino.save_model(model, output, compress_to_fp16=False)
    return output


def _goals(rows: Sequence[Row]) -> list[Goal]:
    """The best closed form beats plain rounding, and NNCF where it has the width."""

    def value(model: str, bits: int, methods: Sequence[str]) -> float:
        chosen = [row for row in rows if (row["model"], row["bits"]) == (model, bits) and row["method"] in methods]
        return min(float(row["1 - cosine"]) for row in chosen)

    ours, peers = [f"qcompile {name}" for name in RECIPES], ["round to nearest", "NNCF INT4_SYM"]
    return [
        Goal(f"{model}, W{bits}, 1 - cosine", value(model, bits, ours), value(model, bits, peers), at_most=True)
        for model in dict.fromkeys(str(row["model"]) for row in rows)
        for bits in BITS
    ]
