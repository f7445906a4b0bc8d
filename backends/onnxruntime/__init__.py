"""ONNX Runtime on the CPU: an .onnx file whose operators are the fast integer kernels."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.backends import AheadOfTime, Capability, Lowered, Site, SlowInIntegers
from qcompile.backends.onnx_files import DATA_FILE, MODEL_FILE, expose, write
from qcompile.backends.onnxruntime import lowering
from qcompile.backends.onnxruntime.chat import open_chat
from qcompile.backends.onnxruntime.empty_batches import aborts
from qcompile.backends.onnxruntime.generation import lower_generator
from qcompile.backends.onnxruntime.session import (
    OnnxRuntimeSession,
    Optimization,
    available_providers,
    can_share,
    open_file,
)
from qcompile.chat import Chat
from qcompile.generation import Generation
from qcompile.initializers import data_bytes
from qcompile.scheme import Dtype, Granularity, GroupScheme, Scheme
from qcompile.session import Probe

SINGLE_FILE_BYTES = 128 * 2**20
_LARGE_BYTES = 1024
_MODES: dict[Optimization, str] = {"disabled": "graph optimizations disabled", "all": "all graph optimizations"}

_WEIGHT_GRANULARITIES: tuple[Granularity, ...] = ("per_channel", "per_tensor")
_DTYPES: tuple[Dtype, ...] = ("uint8", "int8")
_STATIC = tuple(Scheme(dtype, "per_tensor", sym=sym) for dtype, sym in itertools.product(_DTYPES, (True, False)))
_DYNAMIC = (Scheme("uint8", "per_tensor", sym=False, dynamic=True), Scheme("int8", "per_token", dynamic=True))
_LINEAR_WEIGHTS = tuple(Scheme("int8", each, sym=sym) for each in _WEIGHT_GRANULARITIES for sym in (True, False))
_CONV_WEIGHTS = tuple(Scheme("int8", each) for each in _WEIGHT_GRANULARITIES)

CAPABILITIES = (
    *(Capability("Linear", weight, x) for weight in _LINEAR_WEIGHTS for x in _STATIC + _DYNAMIC),
    *(Capability("Conv", weight, x) for weight in _CONV_WEIGHTS for x in _STATIC),
    # One scale for each row of the table; the rows are dequantized after they were gathered.
    Capability("Embedding", Scheme("int8", "per_channel"), None),
    # Keys and values between two runs, one scale for each channel of each head.
    Capability("Cache", Scheme("int8", "per_channel"), None),
    # Weights in groups, of any number of bits: what has no kernel is dequantized when the model is loaded.
    Capability("Linear", GroupScheme(), None),
)

SLOW_IN_INTEGERS = (
    # It has no integer kernel for these: 1.01 to 1.46 times as long as in float, with their quantization (depthwise of
    # 3x3 to 7x7, 1x1 of 16 to 128 inputs, 3x3 of 3 to 14). Where the result is quantized, 1x1 take 0.36 to 1.14.
    SlowInIntegers("Conv", "per_tensor", 128),
    # 1.03 to 5.63: depthwise of 3x3 to 7x7, and 3x3 of one or three inputs to 16 or 32 outputs, at 14x14 to 224x224.
    # Depthwise of 96 channels take 0.78 to 1.52, of 240 0.73 to 1.34, of 480 0.79 to 1.24.
    SlowInIntegers("Conv", "per_tensor", 49, most_inputs=3, most_outputs=32, writes=("float", "rounded", "integers")),
    # Scaling rows costs more than the product: 1.12 to 3.63 (16 to 1024 outputs, 1 to 1024 rows).
    SlowInIntegers("Linear", "per_token", 16),
    # 1.21 to 3.44 (16 and 32 outputs, 16 to 384 inputs); at 64 outputs and 384 inputs 0.89 to 1.26.
    SlowInIntegers("Linear", "per_token", 384, most_outputs=32),
)
"""Measured with processor time on one thread of an AMD EPYC (Zen 5, AVX512-VNNI), onnxruntime 1.31."""


@dataclasses.dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime's CPU provider.

    Attributes:
        name: name in `qcompile.compile(backend=...)`.
        capabilities: what runs in integer arithmetic, or is stored in 8 bits.
        targets: CPUs that a model can be made for. "avx2" stands for those without VNNI, whose products of 8-bit
            pairs saturate; the passes give them weights of 7 bits, and the lowering is the same.
        slow_in_integers: see `SLOW_IN_INTEGERS`.
        ahead_of_time: nothing: ONNX Runtime has its kernels compiled.
    """

    name: str = "onnxruntime"
    capabilities: tuple[Capability, ...] = CAPABILITIES
    targets: tuple[str, ...] = ("avx512-vnni", "avx2")
    slow_in_integers: tuple[SlowInIntegers, ...] = SLOW_IN_INTEGERS
    ahead_of_time: AheadOfTime | None = None

    def check_installed(self) -> None:
        """Do nothing: ONNX Runtime is installed with qcompile."""

    def describe(self) -> dict[str, str]:
        """Return its execution providers; artifacts run on that of the CPU, of whose features it says nothing."""
        return {"providers": ", ".join(available_providers())}

    def flowing_dtype(self, activations: Scheme) -> Dtype:
        """Return uint8 for static activations, which int8 ones are made to; see `quantize_activations_to_uint8`."""
        return activations.dtype if activations.dynamic else "uint8"

    def sites(self, model: ir.Model) -> Sequence[Site]:
        """Return additions in front of norms, which may be fused, and weights in blocks, which may be float."""
        return lowering.sites(model)

    def untimed(self) -> str:
        """Return nothing: what it is timed on is a processor like that which it is for."""
        return ""

    def lower(self, model: ir.Model, folder: Path, *, target: str | None) -> Lowered:  # noqa: ARG002
        """Write model.onnx, and model.onnx.data beside it for weights above 128 MiB, into an existing folder.

        `target` is one of the list; all of them are lowered alike.
        """
        lowered, findings = lowering.lower(model)
        external = data_bytes(lowered) > SINGLE_FILE_BYTES
        write(lowered, folder, external=external)
        return Lowered(MODEL_FILE, (MODEL_FILE, DATA_FILE) if external else (MODEL_FILE,), findings)

    def check_generator(self) -> None:
        """Do nothing: the folder is written without onnxruntime-genai, which opens it."""

    def lower_generator(self, model: ir.Model, folder: Path, generation: Generation) -> Lowered:
        """Write model.onnx, every_position.onnx, their data and genai_config.json, for onnxruntime-genai."""
        return lower_generator(model, folder, generation)

    def open_chat(self, folder: Path, *, threads: int | None = None) -> Chat:
        """Load a folder of onnxruntime-genai; raises MissingDependencyError, ModelError."""
        return open_chat(folder, threads=threads)

    def open_artifact(
        self, model_path: Path, *, threads: int | None = None, optimization: Optimization = "all"
    ) -> OnnxRuntimeSession:
        """Load a written model file; raises ModelError when ONNX Runtime refuses it."""
        return open_file(model_path, threads=threads, optimization=optimization)

    def probes(self, model_path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
        """Load a written model file with inner values as outputs: with graph optimizations disabled, then with all."""
        with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / MODEL_FILE
            found = _write_exposed(model_path, values, Path(folder))
            for optimization, words in _MODES.items():
                # No name for the session: it ends with the probe.
                yield Probe(
                    f"{self.name}, {words}",
                    open_file(path, threads=None, optimization=optimization),
                    found,
                    lambda channels: channels,
                )

    def open_session(
        self,
        model: ir.Model,
        *,
        threads: int | None = None,
        few_runs: bool = False,
        optimization: Optimization = "all",
    ) -> OnnxRuntimeSession:
        """Load an IR model as it is, but for the forms that ONNX Runtime refuses; the model is not changed.

        The weights go through a file, which ONNX Runtime maps, so that they are not copied in memory several times;
        those that lie in memory as they are, like embeddings, it reads there. For few runs it does not pack them
        either: the peak with a decoder of 135 M parameters is 110 MB lower. Raises ModelError when ONNX Runtime refuses
        the model.
        """
        with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as folder:
            model = lowering.legalize(model)
            write(model, Path(folder), external=True)
            found = aborts(model)
            return open_file(
                Path(folder) / MODEL_FILE,
                threads=threads,
                optimization=optimization,
                weights=_weights_in_memory(model),
                few_runs=few_runs,
                name=model.graph.name or "without a name",
                aborts_on_empty=lambda: found,
            )


def _write_exposed(model_path: Path, values: Sequence[Sequence[str]], folder: Path) -> tuple[str, ...]:
    model = ir.load(model_path)
    found = expose(model, values)
    write(model, folder, external=True)
    return found


def _weights_in_memory(model: ir.Model) -> dict[str, np.ndarray]:
    """Return the weights that exist as arrays; not those that are computed, or read from a file, when asked for."""
    found = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        flows_through = value.is_graph_input() or value.is_graph_output()
        if isinstance(tensor, ir.Tensor) and tensor.nbytes > _LARGE_BYTES and not flows_through:
            found[str(value.name)] = tensor.numpy()
    return {name: array for name, array in found.items() if can_share(array)}


BACKEND = OnnxRuntimeBackend()
