"""The runtimes that qcompile lowers to, behind one protocol.

No module outside this package knows which backend it talks to; no backend knows which algorithm made the graph.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import onnx_ir as ir

from qcompile.contract import Finding
from qcompile.errors import UnsupportedError
from qcompile.scheme import Dtype, Scheme
from qcompile.session import Probe, Session

BACKENDS = ("onnxruntime", "openvino")

Operator = Literal["Linear", "Conv", "ConvTranspose", "Attention", "Embedding"]


@dataclasses.dataclass(frozen=True)
class Capability:
    """One row of the table of what a backend runs in integer arithmetic.

    Attributes:
        operator: which operator.
        weights: scheme of the weight; None for products of two activations.
        activations: scheme of the activation; None when it stays float.
    """

    operator: Operator
    weights: Scheme | None
    activations: Scheme | None


@dataclasses.dataclass(frozen=True)
class SlowInIntegers:
    """One row of the table of what a backend computes faster in float, for processors on which nothing can be measured.

    Attributes:
        operator: which operator, of those that read a value that is quantized for them alone.
        most_products: such a layer is slower if it adds up no more products for each number that it writes.
    """

    operator: Operator
    most_products: int


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What a backend wrote.

    Attributes:
        model_file: name of the file to load, inside the folder.
        files: every file written, inside the folder.
        findings: decisions of the lowering, for the report.
    """

    model_file: str
    files: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


class Backend(Protocol):
    """A runtime: what it can do, how a model is written for it, how the result runs."""

    name: str
    capabilities: tuple[Capability, ...]
    targets: tuple[str, ...]
    slow_in_integers: tuple[SlowInIntegers, ...]

    def check_installed(self) -> None:
        """Raise MissingDependencyError, naming the extra to install, when the runtime cannot be imported."""
        ...

    def describe(self) -> dict[str, str]:
        """Return what the runtime says of itself and of this processor, in its own words."""
        ...

    def flowing_dtype(self, activations: Scheme) -> Dtype:
        """Return the type in which lowered models store what activations of this scheme are quantized to."""
        ...

    def lower(self, model: ir.Model, folder: Path, *, target: str | None) -> Lowered:
        """Write the portable quantized model as files of the runtime into an existing folder.

        `target` is None or one of `targets`: `compile` has refused others before any work was done.
        """
        ...

    def open_artifact(self, model_path: Path, *, threads: int | None = None) -> Session:
        """Load a written model file."""
        ...

    def probes(self, model_path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
        """Load a written model file with values from inside of it as further outputs, for each mode of the runtime.

        Each value is given by the names of its forms; the first form that the file computes is read. One that it does
        not compute is left out. The file is not changed.
        """
        ...

    def open_session(self, model: ir.Model, *, threads: int | None = None, few_runs: bool = False) -> Session:
        """Load an IR model (float, or portable quantized) as it is, in float32 precision.

        With `few_runs`, a backend may leave out what takes memory and time before the first run to make the others
        faster.
        """
        ...


def get(name: str) -> Backend:
    """Return the backend of this name, whose runtime can be imported: nobody works long for one that is missing.

    Raises:
        UnsupportedError: there is no backend of this name.
        MissingDependencyError: its runtime is not installed.
    """
    if name not in BACKENDS:
        raise UnsupportedError(f"backend {name!r}", "there is no such backend", f"Use one of {', '.join(BACKENDS)}")
    backend: Backend = importlib.import_module(f"qcompile.backends.{name}").BACKEND
    backend.check_installed()
    return backend
