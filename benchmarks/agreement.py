"""Triton's artifact and ONNX Runtime's of the same recipe: how many quantization steps they are apart.

Two right runs of one deep quantized model do not end within a few steps of each other. The last bit of a float sum
answers a rounding tie in another way; of the values behind that tie, a part answers theirs in another way, and so on,
until after a few quantizers the runs are as far apart as the rounding of all values moves them. MiniLM in
smoothquant-o3, with floats multiplied for integers, was 17 steps apart at the end, and the first that differed was one
number of 24,576 on either side of a tie: -2.4999998 and -2.5000002 steps.

So the two are compared as `qcompile.verify_artifact` compares each with the reference: ONNX Runtime's own values at all
quantizers are given to Triton's artifact, which computes from each the next. What differs then is the work of one
layer. That is what the goals are about: "steps" is the largest difference of one number, "rms steps" the largest root
mean square of one value. The columns of the whole run from inputs to outputs beside it have no goal; "of the noise" is
its root mean square in units of how far quantization itself moves the outputs, of which two runs that have no rounding
in common are 1.4 apart. A step of an output is that of 8 bits over its range.

Both artifacts are made of one portable graph, without choices by time, which differ between backends. Without a card
Triton's runs by torch on the processor. ONNX Runtime rounds biases of convolutions to its integers, and Triton does
not: that is the rms of static recipes of convolutions. Left out: `w4a16-inc`, whose arithmetic is that of `w4a16-gptq`,
and `keep`, of GGUF files. Of SmolLM2 the first two blocks; of Whisper the decoder, in one recipe of each form of
arithmetic. Models with one linear or two take part in the recipes that quantize convolutions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

import qcompile
from benchmarks.results import Benchmark, Goal, Row
from qcompile import backends
from qcompile.backends.triton.lowering import open_model, read
from qcompile.models import crepe, efficientnet_lite, magika, minilm, ppocr, smollm2, texts, whisper
from qcompile.models.reference import ReferenceModel
from qcompile.session import Feed, Session
from qcompile.verify_artifact import apart, as_written
from qcompile.verify_observed import MAX_STEPS, Outlook, observed_values

CALIBRATION, LENGTH, BLOCKS = 4, 32, 2
CONVOLUTIONS = ("float", "w8a8-static", "smoothquant-o3")
LINEARS = (
    *("float", "w8a8-static", "w8a8-dynamic", "llm-int8", "smoothquant-o1", "smoothquant-o2", "smoothquant-o3"),
    *("w4a16-rtn", "w4a16-hqq", "w4a16-awq", "w4a16-gptq", "nf4", "nf4-dq", "w4a8"),
)
SPEECH = ("float", "w8a8-static", "w8a8-dynamic", "llm-int8", "w4a16-rtn", "nf4", "w4a8")
GIVEN = ".given"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, and the recipes that apply to it.

    Attributes:
        model: in canonical form.
        calibration: samples.
        sample: the one to compare on; none of `calibration`.
        recipes: names.
    """

    model: ir.Model
    calibration: Sequence[Feed]
    sample: Feed
    recipes: Sequence[str]


def run(folder: Path) -> Benchmark:
    """Quantize every model by every recipe that applies to it, and compare the two artifacts."""
    rows = list(_rows(folder))
    return Benchmark("Triton's artifacts against ONNX Runtime's, in quantization steps", rows, goals(rows))


def goals(rows: Sequence[Row]) -> list[Goal]:
    """No layer is further apart than qcompile allows a runtime to be from the reference."""
    return [
        Goal(f"{row['model']} {row['recipe']}, steps", float(row["steps"]), MAX_STEPS, at_most=True) for row in rows
    ]


def _rows(folder: Path) -> Iterator[Row]:
    for name, load in LOADERS.items():
        subject = load()
        exact: dict[str, np.ndarray] = {}
        for recipe in subject.recipes:
            portable = qcompile.rewrite(subject.model, recipe, calibration=subject.calibration, verify=False)
            place = folder / f"{name}-{recipe}".replace(" ", "-")
            found, outputs = compare(portable, subject.sample, place, exact)
            exact = exact or outputs  # the first recipe is float
            yield {"model": name, "recipe": recipe, **found}


def compare(
    portable: ir.Model, sample: Feed, folder: Path, exact: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Write a portable graph for both, and return how far they are apart, and what ONNX Runtime computes.

    Args:
        portable: the graph.
        sample: one input.
        folder: to write to; it is made.
        exact: outputs of the float model; empty where the graph is that.
    """
    runtime, ours = backends.get("onnxruntime"), backends.get("triton")
    paths = []
    for engine in (runtime, ours):
        (folder / engine.name).mkdir(parents=True)
        paths.append(folder / engine.name / engine.lower(portable, folder / engine.name, target=None).model_file)
    outputs, whole = runtime.open_artifact(paths[0]).run(sample), ours.open_artifact(paths[1]).run(sample)
    *_, probe = runtime.probes(paths[0], observed_values(portable))  # the last mode is that of artifacts
    dtypes = {str(value.name): value.dtype for node in portable.graph for value in node.outputs}
    seen = {name: as_written(array, dtypes.get(name)) for name, array in probe.session.run(sample).items()}
    session, feed = given(read(paths[1]), {name: seen[name] for name in probe.values})
    outlook = Outlook.of(portable, probe.values)
    layers = [
        apart(seen[name], array, outlook.step(name, seen[name])) for name, array in session.run(sample | feed).items()
    ]
    ends = [apart(array, whole[name], outlook.end_step(name, array)) for name, array in outputs.items()]
    found = {
        "values": len(layers),
        "steps": max(most for most, _ in layers),
        "rms steps": max(mean for _, mean in layers),
        "steps, whole run": max(most for most, _ in ends),
        "rms, whole run": max(mean for _, mean in ends),
        "of the noise": max(_noises(exact, outputs, whole), default=0.0),
    }
    return found, outputs


def given(model: ir.Model, values: Mapping[str, np.ndarray]) -> tuple[Session, Feed]:
    """Load a portable model whose nodes read these values as inputs, and return each as it computes it.

    Returns:
        The session, whose outputs are those of the model and, by their names, the values; and the feed of the values.
    """
    computed = {value.name: value for node in model.graph for value in node.outputs}
    for name, array in values.items():
        value, kind = computed[name], ir.TensorType(ir.DataType.from_numpy(array.dtype))
        stand_in = ir.Value(name=f"{name}{GIVEN}", type=kind, shape=value.shape)
        value.replace_all_uses_with(stand_in, replace_graph_outputs=False)
        model.graph.inputs.append(stand_in)
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return open_model(model), {f"{name}{GIVEN}": array for name, array in values.items()}


def _noises(
    exact: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray]
) -> Iterator[float]:
    """How far the two are apart in units of how far quantization moves each output; of integers nothing."""
    for name in exact:
        noise = float(np.sqrt(np.mean(np.square(outputs[name] - exact[name], dtype=np.float64))))
        if noise and outputs[name].dtype.kind == "f":
            yield float(np.sqrt(np.mean(np.square(outputs[name] - whole[name], dtype=np.float64)))) / noise


def _encoder() -> Subject:
    encoder = minilm.load()
    calibration = list(encoder.batches(texts.calibration_texts(CALIBRATION), length=LENGTH))
    (sample,) = encoder.batches(texts.held_out_texts(1), length=LENGTH)
    model = qcompile.trace(encoder.module, example_inputs=encoder.example(), dynamic_shapes=encoder.dynamic_shapes())
    return Subject(model, calibration, sample, LINEARS)


def _language_model() -> Subject:
    whole = smollm2.load()
    module = copy.deepcopy(whole.module)
    module.model.model.layers = module.model.model.layers[:BLOCKS]
    calibration = list(whole.batches(texts.calibration_texts(CALIBRATION), length=LENGTH))
    (sample,) = whole.batches(texts.held_out_texts(1), length=LENGTH)
    model = qcompile.trace(module, example_inputs=whole.example(), dynamic_shapes=whole.dynamic_shapes())
    return Subject(model, calibration, sample, LINEARS)


def _speech() -> Subject:
    speech = whisper.load()
    *calibration, sample = speech.batches(texts.calibration_texts(CALIBRATION + 1), length=LENGTH)
    model = qcompile.trace(speech.module, example_inputs=speech.example(), dynamic_shapes=speech.dynamic_shapes())
    return Subject(model, calibration, sample, SPEECH)


def _reference(load: Callable[[int, int], ReferenceModel], recipes: Sequence[str]) -> Callable[[], Subject]:
    def loaded() -> Subject:
        found = load(CALIBRATION, 1)
        example = {} if isinstance(found.model, Path) else {"example_inputs": found.example}
        model = qcompile.trace(found.model, dynamic_shapes=found.dynamic_shapes, **example)
        return Subject(model, found.calibration, found.held_out[0], recipes)

    return loaded


LOADERS: Mapping[str, Callable[[], Subject]] = {
    "MiniLM": _encoder,
    "SmolLM2, 2 blocks": _language_model,
    "Whisper decoder": _speech,
    "EfficientNet-Lite0": _reference(efficientnet_lite.load, CONVOLUTIONS),
    "CREPE": _reference(crepe.load, CONVOLUTIONS),
    "magika": _reference(magika.load, CONVOLUTIONS),
    "PP-OCRv4 recognition": _reference(ppocr.load, LINEARS),
}
