"""What processes do that write to one folder at the same time; each is run in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np
import onnx_ir as ir

import qcompile
from qcompile.backends import Lowered
from qcompile.errors import ArtifactError
from qcompile.report import Report
from tests.artifacts import save, write

PATIENCE = 60
"""Seconds after which a process that waits for another one fails."""


def write_slowly(output: Path, begun: Event, may_end: Event) -> None:
    def slow(folder: Path) -> Lowered:
        lowered = save(folder)
        begun.set()
        assert may_end.wait(PATIENCE)
        return lowered

    write(output, slow, report=Report(model="slow"))


def compile_slowly(output: Path, begun: Event, may_end: Event) -> None:
    """Compile a small model whose calibration data comes late."""

    def data() -> Iterator[dict[str, np.ndarray]]:
        begun.set()
        assert may_end.wait(PATIENCE)
        yield {"x": np.ones((2, 8), np.float32)}

    qcompile.compile(small_model(), "w8a8-static", calibration=data, output=output, verify=False)


def small_model() -> ir.Model:
    weight = ir.tensor(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), name="w")
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }'
    return ir.from_onnx_text(text, initializers=[weight])


def write_together(output: Path, name: str, start: Barrier, rounds: int, results: Path) -> None:
    """In each round write an artifact that carries the name, at the same moment as others; note what came of it."""
    for turn in range(rounds):
        start.wait(PATIENCE)
        try:
            write(output, report=Report(model=name), target=name)
            said = "written"
        except ArtifactError as error:
            said = error.reason
        (results / f"{turn}-{name}").write_text(said)
        start.wait(PATIENCE)  # for whoever looks at the folder
        start.wait(PATIENCE)


def write_until(output: Path, stop: Event) -> None:
    """Replace an artifact by the other of two, again and again."""
    while not stop.is_set():
        write(output, report=Report(model="a"), target="a")
        write(output, lambda folder: save(folder, "model.onnx.data"), report=Report(model="b"), target="b")
