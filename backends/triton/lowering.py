"""The way from the portable graph to an artifact, and from there to what torch runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from qcompile.backends.onnx_files import expose, write
from qcompile.backends.triton.session import TorchSession, load
from qcompile.contract import Finding
from qcompile.errors import ModelError
from qcompile.session import Probe
from qcompile.unused_nodes import RemoveUnusedNodes


def write_artifact(model: ir.Model, folder: Path) -> tuple[Finding, ...]:
    """Write the portable graph into a folder, with its functions; it is not changed."""
    model = model.clone()
    RemoveUnusedNodes()(model)
    write(model, folder, external=True)
    return ()


def open_file(path: Path, *, threads: int | None = None) -> TorchSession:
    """Load a written model file; raises ModelError for what is none."""
    return load(read(path), threads=threads)


def open_probes(path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
    """Load a written model file with values as outputs, in each mode."""
    model = read(path)
    found = expose(model, values)
    yield Probe("triton, operator by operator", load(model), found, lambda channels: channels)


def read(path: Path) -> ir.Model:
    """Return the model of a file; raises ModelError for what is none."""
    try:
        return ir.load(path)
    except (OSError, DecodeError, ValueError) as error:
        raise ModelError(f"model {path.name}", f"it cannot be read: {error}", "Compile the model again") from error
