"""Triton on a GPU: the quantized graph itself as the artifact, lowered to torch.fx and kernels when it is loaded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.backends import AheadOfTime, Capability, Lowered, Site, SlowInIntegers
from qcompile.backends.onnx_files import DATA_FILE, MODEL_FILE
from qcompile.backends.triton import runtime
from qcompile.chat import Chat
from qcompile.generation import Generation
from qcompile.scheme import Dtype, Granularity, GroupScheme, Scheme
from qcompile.session import Feed, Probe, Session

_GRANULARITIES: tuple[Granularity, ...] = ("per_channel", "per_tensor")
_DTYPES: tuple[Dtype, ...] = ("uint8", "int8")
_STATIC = tuple(Scheme(dtype, "per_tensor", sym=sym) for dtype, sym in itertools.product(_DTYPES, (True, False)))
_DYNAMIC = (Scheme("uint8", "per_tensor", sym=False, dynamic=True), Scheme("int8", "per_token", dynamic=True))
_WEIGHTS = tuple(Scheme("int8", granularity, sym=sym) for granularity in _GRANULARITIES for sym in (True, False))

CAPABILITIES = (
    *(Capability("Linear", weight, x) for weight in _WEIGHTS for x in _STATIC + _DYNAMIC),
    *(Capability("Conv", weight, x) for weight in _WEIGHTS for x in _STATIC),
    *(Capability("ConvTranspose", weight, x) for weight in _WEIGHTS for x in _STATIC),
    # One scale for each row of the table; the rows are dequantized after they were gathered.
    Capability("Embedding", Scheme("int8", "per_channel"), None),
    # Weights in groups, of any number of bits.
    Capability("Linear", GroupScheme(), None),
)


@dataclasses.dataclass(frozen=True)
class AotInductor:
    """torch.export and AOTInductor: see `AheadOfTime`."""

    def check(self) -> None:
        """Raise MissingDependencyError without a compiler of C++, UnsupportedError on Windows."""
        runtime.check_compiler()

    def compile(self, model_path: Path, samples: Iterable[Feed]) -> str:
        """Compile a written model for the device that is here: the card, or without one the processor.

        Raises UnsupportedError for what torch cannot export or compile.
        """
        from qcompile.backends.triton.packages import compile_package

        return compile_package(model_path, samples)

    def open(self, path: Path, *, threads: int | None = None) -> Session:
        """Load a package, whose code is run; raises ModelError for none of qcompile, and for one of another device."""
        from qcompile.backends.triton.packages import open_package

        return open_package(path, threads=threads)


@dataclasses.dataclass(frozen=True)
class TritonBackend:
    """torch and Triton on one CUDA device; without one, torch on the processor computes the same numbers.

    Attributes:
        name: name in `qcompile.compile(backend=...)`.
        capabilities: what runs in integer arithmetic, or is stored in 8 bits.
        targets: there is one; artifacts are compiled for a card when they are loaded there.
        slow_in_integers: nothing has been measured on a card yet.
        ahead_of_time: see `AotInductor`.
    """

    name: str = "triton"
    capabilities: tuple[Capability, ...] = CAPABILITIES
    targets: tuple[str, ...] = ("cuda",)
    slow_in_integers: tuple[SlowInIntegers, ...] = ()
    ahead_of_time: AheadOfTime | None = AotInductor()

    def check_installed(self) -> None:
        """Raise MissingDependencyError without Triton."""
        runtime.check_installed()

    def describe(self) -> dict[str, str]:
        """Return the device, and the version of torch."""
        return runtime.described()

    def flowing_dtype(self, activations: Scheme) -> Dtype:
        """Return the type of the scheme."""
        return activations.dtype

    def sites(self, model: ir.Model) -> Sequence[Site]:  # noqa: ARG002
        """Return nothing: which kernel is fastest is decided on the card, when the model is loaded."""
        return ()

    def untimed(self) -> str:
        """Return that there is no card, where there is none."""
        return runtime.NO_CARD if runtime.device() == "cpu" else ""

    def lower(self, model: ir.Model, folder: Path, *, target: str | None) -> Lowered:  # noqa: ARG002
        """Write the quantized graph as model.onnx and model.onnx.data into an existing folder.

        Nothing is pickled, and nothing in the files runs: what torch makes of the graph is made when it is loaded,
        which is when an operator that torch does not have is refused.
        """
        from qcompile.backends.triton.lowering import write_artifact

        findings = write_artifact(model, folder)
        return Lowered(MODEL_FILE, (MODEL_FILE, DATA_FILE), findings)

    def check_generator(self) -> None:
        """Do nothing: the folder is read by this package."""

    def lower_generator(self, model: ir.Model, folder: Path, generation: Generation) -> Lowered:  # noqa: ARG002
        """Write the same files, of a decoder that takes and returns its cache; all else is read when it is loaded.

        Raises UnsupportedError for a model without a cache.
        """
        from qcompile.backends.decoder_caches import find_caches

        find_caches(model)
        return self.lower(model, folder, target=None)

    def open_chat(self, folder: Path, *, threads: int | None = None) -> Chat:
        """Load a folder that `lower_generator` wrote; raises MissingDependencyError, ModelError.

        The most probable token is taken, whatever generation_config.json says.
        """
        from qcompile.backends.triton.chat import open_conversation
        from qcompile.backends.triton.lowering import prepared, read
        from qcompile.backends.triton.session import load

        runtime.say_once_without_card()
        model = prepared(read(folder / MODEL_FILE))
        return open_conversation(folder, model, load(model, threads=threads))

    def open_artifact(self, model_path: Path, *, threads: int | None = None) -> Session:
        """Load a written model file; without a CUDA device on the processor, which is said once.

        Raises ModelError for a file that is none of a model, UnsupportedOperator for what torch does not have.
        """
        from qcompile.backends.triton.lowering import open_file

        runtime.say_once_without_card()
        return open_file(model_path, threads=threads)

    def probes(self, model_path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
        """Load a written model file with inner values as outputs: operator by operator, then with kernels."""
        from qcompile.backends.triton.lowering import open_probes

        return open_probes(model_path, values)

    def open_session(
        self,
        model: ir.Model,
        *,
        threads: int | None = None,
        few_runs: bool = False,  # noqa: ARG002
    ) -> Session:
        """Load an IR model as it is, operator by operator; torch prepares for few runs as for many."""
        from qcompile.backends.triton.session import load

        return load(model, threads=threads)


BACKEND = TritonBackend()
