"""What is in a model or in an artifact: facts, before anything is compiled or run."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qcompile import backends, frontend
from qcompile.artifact import Artifact, load
from qcompile.artifact_portable import GRAPH
from qcompile.capability import check_data, check_recipe, integer_operators
from qcompile.compile import trace
from qcompile.errors import CalibrationError, MissingDependencyError, UnsupportedError
from qcompile.graph import all_nodes, is_standard, layer_name
from qcompile.layers import embeddings, every_layer, float_layers, operator
from qcompile.manifest import Port, ports
from qcompile.outcome import file_bytes
from qcompile.passes.keep_weights import KeepWeights
from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.recipe import Recipe, named_recipes
from qcompile.stored_blocks import Stored, stored_as
from qcompile.untouched import quantized_already


@dataclasses.dataclass(frozen=True)
class LayerFacts:
    """A linear or a convolution with a constant weight, or an embedding.

    Attributes:
        name: as the user knows it, as `ignore` takes it.
        operator: "Linear", "Conv", "ConvTranspose" or "Embedding".
        shape: of its weight or table.
        dtype: of it, as numpy calls it.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class RecipeFacts:
    """What a named recipe finds in a model on a backend.

    Attributes:
        recipe: its name.
        backend: name of the backend.
        layers: how many linears, convolutions and embeddings it quantizes there, if their values allow it.
        needs: "calibration data" or nothing.
        better_with: the same of what it can do without, and does less then: rounds to nearest, or smooths nothing.
        refusal: why it does not apply; empty where it does.
    """

    recipe: str
    backend: str
    layers: int
    needs: str = ""
    better_with: str = ""
    refusal: str = ""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What is in a model.

    Attributes:
        name: of its graph.
        opsets: domain -> version; the standard domain is "".
        bytes: of the model as one file.
        inputs: of the model.
        outputs: of the model.
        operators: operator, with its domain where that is not the standard one -> how often, most frequent first; in
            subgraphs too.
        functions: names of its own operators.
        layers: its linears and convolutions, then its embeddings, in canonical form and in the order of the graph.
        quantized: how many products read quantized values already.
        recipes: what each named recipe finds in it.
    """

    name: str
    opsets: Mapping[str, int]
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: Mapping[str, int]
    functions: tuple[str, ...]
    layers: tuple[LayerFacts, ...]
    quantized: int
    recipes: tuple[RecipeFacts, ...]


@dataclasses.dataclass(frozen=True)
class ArtifactFacts:
    """What the manifest and the report of an artifact say, once its files were compared with the manifest.

    Attributes:
        path: the folder.
        recipe: name of the recipe.
        backend: name of the backend.
        target: processor that it was made for, or None for one like the compiler's.
        model_file: the file to load.
        inputs: of the model.
        outputs: of the model.
        versions: package -> version that made it.
        calibration: digest of the calibration data, or None without.
        files: file -> bytes.
        layers: what was done -> with how many layers.
        bits_per_weight: see `qcompile.bits_per_weight`; None where no weight is quantized.
        can_be_verified: it holds what `qcompile.verify` needs, without the float model.
    """

    path: str
    recipe: str
    backend: str
    target: str | None
    model_file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    versions: Mapping[str, str]
    calibration: str | None
    files: Mapping[str, int]
    layers: Mapping[str, int]
    bits_per_weight: Mapping[str, float] | None
    can_be_verified: bool


def inspect_artifact(folder: Path) -> ArtifactFacts:
    """Return the facts of an artifact; raises ArtifactError as `load` does."""
    artifact: Artifact = load(folder)
    manifest = artifact.manifest
    return ArtifactFacts(
        path=str(artifact.path),
        recipe=str(manifest.recipe.get("name", "")),
        backend=manifest.backend,
        target=manifest.target,
        model_file=manifest.model_file,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        versions=manifest.versions,
        calibration=manifest.calibration,
        files={name: entry.size for name, entry in manifest.files.items()},
        layers=dict(Counter(layer.action for layer in artifact.report.layers)),
        bits_per_weight=manifest.bits_per_weight,
        can_be_verified=GRAPH in manifest.files and not artifact.report.not_compared,
    )


def inspect_model(model: Any, *, trust_input: bool = False) -> ModelFacts:
    """Return the facts of a model in any form that `trace` takes without examples; it is read, and not run.

    Raises:
        ModelError: it cannot be read.
    """
    read = frontend.trace(model, trust_input=trust_input)
    canonical = trace(read)
    return ModelFacts(
        name=str(read.graph.name or ""),
        opsets=dict(read.opset_imports),
        bytes=file_bytes(read),
        inputs=ports(value for value in read.graph.inputs if value.const_value is None),
        outputs=ports(read.graph.outputs),
        operators=dict(Counter(map(_operator, all_nodes(read))).most_common()),
        functions=tuple(f"{domain}.{name}" for domain, name, _ in read.functions),
        layers=tuple(_layers(canonical)),
        quantized=len(quantized_already(canonical)),
        recipes=tuple(_recipes(canonical)),
    )


def _operator(node: ir.Node) -> str:
    return node.op_type if is_standard(node, node.op_type) else f"{node.domain}.{node.op_type}"


def _layers(model: ir.Model) -> list[LayerFacts]:
    layers = [_layer(layer.name, operator(layer), layer.weight) for layer in every_layer(model)]
    tables = [_layer(layer_name(nodes[0]), "Embedding", table) for table, nodes in embeddings(model).items()]
    return layers + tables


def _layer(name: str, kind: str, weight: ir.Value) -> LayerFacts:
    shape = weight.shape.numpy() if weight.shape is not None else ()
    return LayerFacts(name, kind, tuple(shape), str(weight.dtype.numpy()) if weight.dtype is not None else "")


def _recipes(model: ir.Model) -> list[RecipeFacts]:
    operators = Counter(operator(layer) for layer in float_layers(model))
    shapes = [table.shape for table in embeddings(model) if table.dtype == ir.DataType.FLOAT]
    tables = [math.prod(shape.numpy()) for shape in shapes if shape is not None]
    found = [stored_as(layer.weight.const_value, transposed=True) for layer in every_layer(model)]
    found += [stored_as(table.const_value, transposed=False) for table in embeddings(model)]
    stored = sum(isinstance(each, Stored) for each in found)
    return [
        _applied(Recipe.from_name(name), backend, operators, tables, stored)
        for backend in backends.BACKENDS
        for name in named_recipes()
    ]


def _applied(
    recipe: Recipe, backend: str, operators: Mapping[str, int], tables: Sequence[int], stored: int
) -> RecipeFacts:
    try:
        engine = backends.get(backend)
        check_recipe(recipe, engine)
    except (MissingDependencyError, UnsupportedError) as error:
        return RecipeFacts(recipe.name, backend, 0, refusal=error.reason)
    steps = [step.build() for step in recipe.steps]
    if any(isinstance(step, KeepWeights) for step in steps):
        refusal = "" if stored else f"it looks for {KeepWeights.looks_for}"
        return RecipeFacts(recipe.name, backend, stored, refusal=refusal)
    able = integer_operators(recipe, engine, None)
    count = sum(operators[name] for name in able)
    if "Embedding" in able:
        smallest = [step.min_elements for step in steps if isinstance(step, QuantizeEmbeddings)]
        count += sum(elements >= min(smallest) for elements in tables) if smallest else 0
    try:
        check_data(recipe, None)
    except CalibrationError:
        return RecipeFacts(recipe.name, backend, count, needs="calibration data")
    less = any(step.without_calibration() != step for step in steps)
    return RecipeFacts(recipe.name, backend, count, better_with="calibration data" if less else "")
