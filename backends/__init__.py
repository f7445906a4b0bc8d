"""The runtimes that qcompile lowers to, behind one protocol.

No module outside this package knows which backend it talks to; no backend knows which algorithm made the graph.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import onnx_ir as ir

from qcompile.chat import Chat
from qcompile.contract import Finding
from qcompile.errors import UnsupportedError
from qcompile.generation import Generation
from qcompile.scheme import Dtype, Granularity, GroupScheme, Scheme
from qcompile.session import Feed, Probe, Session

BACKENDS = ("onnxruntime", "openvino", "triton")

Operator = Literal["Linear", "Conv", "ConvTranspose", "Attention", "Embedding", "Cache"]


@dataclasses.dataclass(frozen=True)
class Capability:
    """One row of the table of what a backend runs in integer arithmetic.

    Attributes:
        operator: which operator.
        weights: scheme of the weight; None for products of two activations. That of groups stands for all of them.
        activations: scheme of the activation; None when it stays float.
    """

    operator: Operator
    weights: Scheme | GroupScheme | None
    activations: Scheme | None


@dataclasses.dataclass(frozen=True)
class SlowInIntegers:
    """One row of the table of what a backend computes faster in float, for processors on which nothing can be measured.

    A layer is of a row where all of it applies, and no other layer reads the value that is quantized for it.

    Attributes:
        operator: which operator.
        activations: granularity of what it reads.
        most_products: it adds up no more products for each number that it writes,
        most_inputs: and those of no more channels: 1 where it is depthwise; None: however many.
        most_outputs: it writes no more channels; None: however many.
        writes: what becomes of its result: "float": nothing quantizes it; "rounded": it is quantized, and no layer
            reads the integers; "integers": one does.
    """

    operator: Operator
    activations: Granularity
    most_products: int
    most_inputs: int | None = None
    most_outputs: int | None = None
    writes: tuple[Literal["float", "rounded", "integers"], ...] = ("float",)


FORM = "qcompile.form"
"""Key of the metadata of a node, under which it says in which form a backend is to write it; see `Site`."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Nodes of a model that a backend can write in several forms, all of one meaning.

    The form is written down in the metadata of the first node, so that it goes wherever the node goes: through the
    passes, into copies, into the portable graph. Where a pass replaces the node, the form is the first again.

    Attributes:
        kind: what the nodes are, in words.
        nodes: in graph order. What they read is float32, and constants.
        forms: a word for each; the first is written where none was chosen: the fastest where it was measured.
    """

    kind: str
    nodes: tuple[ir.Node, ...]
    forms: tuple[str, ...]

    @property
    def form(self) -> str:
        """The form that was chosen, or the first: metadata are anybody's to write."""
        said = self.nodes[0].metadata_props.get(FORM)
        return said if said in self.forms else self.forms[0]


@dataclasses.dataclass(frozen=True)
class Lowered:
    """What a backend wrote.

    Attributes:
        model_file: name of the file to load, inside the folder.
        files: every file written, inside the folder.
        findings: decisions of the lowering, for the report.
        package: of machine code, compiled of the model file: name of the file, inside the folder; None: there is none.
    """

    model_file: str
    files: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    package: str | None = None


class AheadOfTime(Protocol):
    """A compiler of machine code for what a backend wrote, for the device that is here."""

    def check(self) -> None:
        """Raise, before any work, MissingDependencyError or UnsupportedError where nothing can be compiled here."""
        ...

    def compile(self, model_path: Path, samples: Iterable[Feed]) -> str:
        """Compile a written model file into a package beside it, and return its name.

        Free dims of the inputs stay free, whatever they are in the samples, of which there is at least one.
        """
        ...

    def open(self, path: Path, *, threads: int | None = None) -> Session:
        """Load a package, whose code is run: for those who trust whoever made it."""
        ...


class Backend(Protocol):
    """A runtime: what it can do, how a model is written for it, how the result runs."""

    name: str
    capabilities: tuple[Capability, ...]
    targets: tuple[str, ...]
    slow_in_integers: tuple[SlowInIntegers, ...]
    ahead_of_time: AheadOfTime | None

    def check_installed(self) -> None:
        """Raise MissingDependencyError, naming the extra to install, when the runtime cannot be imported."""
        ...

    def describe(self) -> dict[str, str]:
        """Return what the runtime says of itself and of this processor, in its own words."""
        ...

    def flowing_dtype(self, activations: Scheme) -> Dtype:
        """Return the type in which lowered models store what activations of this scheme are quantized to."""
        ...

    def sites(self, model: ir.Model) -> Sequence[Site]:
        """Return what `lower` can write in several forms, in graph order; none where one form is always the fastest."""
        ...

    def untimed(self) -> str:
        """Return why times taken on this machine say nothing of artifacts: the device that they are for is not here.

        Empty where it is; then what is faster is measured, and latencies go into reports.
        """
        ...

    def lower(self, model: ir.Model, folder: Path, *, target: str | None) -> Lowered:
        """Write the portable quantized model as files of the runtime into an existing folder.

        Each of its `sites` is written in the form that its metadata says.
        `target` is None or one of `targets`: `compile` has refused others before any work was done.
        """
        ...

    def check_generator(self) -> None:
        """Raise, before any work, MissingDependencyError where `lower_generator` would of every model."""
        ...

    def lower_generator(self, model: ir.Model, folder: Path, generation: Generation) -> Lowered:
        """Write a portable language model as the folder that the runtime's own library for generation opens.

        Configuration and tokenizer lie in the folder already. The model file of what is returned takes and returns the
        cache, and computes logits of all positions. Raises UnsupportedError for a model without a cache.
        """
        ...

    def open_chat(self, folder: Path, *, threads: int | None = None) -> Chat:
        """Load the folder that `lower_generator` wrote, to talk to it."""
        ...

    def open_artifact(self, model_path: Path, *, threads: int | None = None) -> Session:
        """Load a written model file, of which nothing is run as code."""
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


def open_written(
    engine: Backend, folder: Path, model_file: str, package: str | None, *, threads: int | None = None
) -> Session:
    """Load what a backend wrote into a folder: its package, where one is given, whose code is run; else its model."""
    if package is not None and engine.ahead_of_time is not None:
        return engine.ahead_of_time.open(folder / package, threads=threads)
    return engine.open_artifact(folder / model_file, threads=threads)
