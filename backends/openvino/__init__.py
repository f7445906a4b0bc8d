"""OpenVINO on the CPU: an .xml and a .bin file that plain OpenVINO loads."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.backends import AheadOfTime, Capability, Lowered, Site, SlowInIntegers
from qcompile.backends.openvino import generation as generation_files
from qcompile.backends.openvino import lowering
from qcompile.backends.openvino.chat import open_chat
from qcompile.backends.openvino.conversion import converted
from qcompile.backends.openvino.probes import open_probe
from qcompile.backends.openvino.runtime import core, openvino, runtime_errors
from qcompile.backends.openvino.session import DEVICE, OpenVinoSession, Precision, load, refused
from qcompile.backends.openvino.tokenizers import convert_tokenizer, write_tokenizers
from qcompile.chat import Chat
from qcompile.generation import Generation
from qcompile.scheme import Dtype, Granularity, GroupScheme, Scheme
from qcompile.session import Probe, Session

_GRANULARITIES: tuple[Granularity, ...] = ("per_channel", "per_tensor")
_DTYPES: tuple[Dtype, ...] = ("uint8", "int8")
_STATIC = tuple(Scheme(dtype, "per_tensor", sym=sym) for dtype, sym in itertools.product(_DTYPES, (True, False)))
# Per token runs in groups of 16 to 128 channels of a token, OpenVINO's own dynamic quantization.
_DYNAMIC = (Scheme("uint8", "per_tensor", sym=False, dynamic=True), Scheme("int8", "per_token", dynamic=True))
_WEIGHTS = tuple(Scheme("int8", granularity) for granularity in _GRANULARITIES)

CAPABILITIES = (
    *(Capability("Linear", weight, x) for weight in _WEIGHTS for x in _STATIC + _DYNAMIC),
    *(Capability("Conv", weight, x) for weight in _WEIGHTS for x in _STATIC),
    # An activation with a zero point leaves OpenVINO's deconvolution in float (measured, 2026.4).
    *(Capability("ConvTranspose", weight, Scheme("int8", "per_tensor")) for weight in _WEIGHTS),
    # Query times key: the probabilities, and so their product with the value, are float.
    *(Capability("Attention", None, x) for x in _STATIC),
    # One scale for each row of the table; the rows are dequantized after they were gathered.
    Capability("Embedding", Scheme("int8", "per_channel"), None),
    # Weights in groups, of any number of bits: what has no kernel is dequantized when the model is loaded.
    Capability("Linear", GroupScheme(), None),
)


@dataclasses.dataclass(frozen=True)
class OpenVinoBackend:
    """OpenVINO's CPU plugin.

    Attributes:
        name: name in `qcompile.compile(backend=...)`.
        capabilities: what runs in integer arithmetic, or is stored in 8 bits.
        targets: CPUs that a model can be made for. "avx2" stands for those without VNNI, whose products of 8-bit
            pairs saturate; the passes give them weights of 7 bits, and the lowering is the same.
        slow_in_integers: nothing. Measured with processor time on one thread of an AMD EPYC (Zen 5, AVX512-VNNI),
            openvino 2026.4, integer to float: depthwise convolutions between float operators 0.99 to 1.12, convolutions
            of 3 channels 0.80 and 0.82, linears of 8 to 128 channels 0.98 to 1.06. No kind of layer always loses.
        ahead_of_time: nothing: OpenVINO compiles a model when it loads it.
    """

    name: str = "openvino"
    capabilities: tuple[Capability, ...] = CAPABILITIES
    targets: tuple[str, ...] = ("avx512-vnni", "avx2")
    slow_in_integers: tuple[SlowInIntegers, ...] = ()
    ahead_of_time: AheadOfTime | None = None

    def check_installed(self) -> None:
        """Raise MissingDependencyError without OpenVINO."""
        openvino()

    def describe(self) -> dict[str, str]:
        """Return the processor and what OpenVINO's plugin optimizes for on it, e.g. BF16; without OpenVINO an error."""
        names = {"processor": "FULL_DEVICE_NAME", "optimized for": "OPTIMIZATION_CAPABILITIES"}
        found = {words: core().get_property(DEVICE, name) for words, name in names.items()}
        return {words: value if isinstance(value, str) else ", ".join(value) for words, value in found.items()}

    def flowing_dtype(self, activations: Scheme) -> Dtype:
        """Return the type of the scheme."""
        return activations.dtype

    def sites(self, model: ir.Model) -> Sequence[Site]:  # noqa: ARG002
        """Return nothing: no form is known that OpenVINO does not choose by itself when it loads the model."""
        return ()

    def untimed(self) -> str:
        """Return nothing: what it is timed on is a processor like that which it is for."""
        return ""

    def lower(self, model: ir.Model, folder: Path, *, target: str | None) -> Lowered:  # noqa: ARG002
        """Write model.xml and model.bin into an existing folder.

        `target` is one of the list; all of them are lowered alike. Raises ModelError when OpenVINO refuses the model,
        and MissingDependencyError without OpenVINO.
        """
        findings = lowering.lower(model, folder)
        return Lowered(lowering.MODEL_FILE, (lowering.MODEL_FILE, lowering.WEIGHTS_FILE), findings)

    def check_generator(self) -> None:
        """Raise MissingDependencyError without openvino-tokenizers."""
        convert_tokenizer()

    def lower_generator(self, model: ir.Model, folder: Path, generation: Generation) -> Lowered:  # noqa: ARG002
        """Write openvino_model.xml, which keeps its cache in states, and .bin; openvino_genai reads the rest itself."""
        findings = generation_files.lower_generator(model, folder)
        files = (generation_files.MODEL_FILE, generation_files.WEIGHTS_FILE)
        return Lowered(generation_files.MODEL_FILE, (*files, *write_tokenizers(folder)), findings)

    def open_chat(self, folder: Path, *, threads: int | None = None) -> Chat:
        """Load a folder of openvino_genai; raises MissingDependencyError, ModelError."""
        return open_chat(folder, threads=threads)

    def open_artifact(self, model_path: Path, *, threads: int | None = None, precision: Precision = "f32") -> Session:
        """Load a written model file; `precision` is that of its float operators.

        Raises ModelError when OpenVINO refuses the file, and MissingDependencyError without OpenVINO.
        """
        if model_path.name == generation_files.MODEL_FILE:
            return generation_files.open_generator(model_path, threads=threads, precision=precision)
        try:
            model = core().read_model(model_path)
        except runtime_errors() as error:
            raise refused(f"model {model_path.name}", error) from error
        return load(model, f"model {model_path.name}", threads=threads, precision=precision)

    def probes(self, model_path: Path, values: Sequence[Sequence[str]]) -> Iterator[Probe]:
        """Load a written model file with inner values as outputs; OpenVINO has one mode."""
        yield open_probe(model_path, values)

    def open_session(
        self,
        model: ir.Model,
        *,
        threads: int | None = None,
        few_runs: bool = False,  # noqa: ARG002
        precision: Precision = "f32",
    ) -> OpenVinoSession:
        """Load an IR model as it is: nothing is quantized at run time that the model does not quantize itself.

        OpenVINO prepares for few runs as for many. Raises ModelError when OpenVINO refuses the model, and
        MissingDependencyError without OpenVINO.
        """
        with converted(model) as result:
            subject = f"model {model.graph.name or 'without a name'}"
            return load(result, subject, threads=threads, precision=precision, group_size=0)


BACKEND = OpenVinoBackend()
