"""How far the output of each layer of a quantized model is from the float model's: the error that has come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.calibration_masks import PaddingMask
from qcompile.graph import Names, is_standard
from qcompile.initializers import register_initializer
from qcompile.layers import every_layer, node_of
from qcompile.memory import return_freed_memory
from qcompile.session import Feed, OpenSession
from qcompile.solvers.sqnr import sqnr_db

ROWS = 16
"""Most rows of an output that are compared: tokens of linears and attention; of a convolution, one image."""


def output_names(model: ir.Model) -> dict[str, str]:
    """Return layer -> name of its output, of linears, convolutions and the products of attention.

    A layer is called by the value that its node computes, as in `Finding.value`: behind it the bias may be added.
    Embeddings are left out: no error comes before theirs.
    """
    outputs = {str(node_of(layer).outputs[0].name): str(layer.output.name) for layer in every_layer(model)}
    products = [str(node.outputs[0].name) for node in model.graph if is_standard(node, "Attention", "MatMul")]
    return {name: name for name in products} | outputs


def layer_outputs(
    model: ir.Model, names: Mapping[str, str], sample: Feed, masks: Sequence[PaddingMask], open_session: OpenSession
) -> dict[str, np.ndarray]:
    """Run a model and return layer -> output of the layer, a vector of float32, without padding.

    What a graph has no value of that name for is left out. Memory is that of ROWS rows of each layer.

    Args:
        model: is not changed.
        names: of `output_names`, taken from the float model.
        sample: inputs of one run.
        masks: inputs that mark padding.
        open_session: the runtime.

    Raises:
        ModelError: the runtime refuses the model.
    """
    seen = model.clone()
    seen.graph.outputs.clear()  # logits over a vocabulary are large
    probes = _add_probes(seen, names)
    if not probes:
        return {}
    found = open_session(seen).run(sample)
    outputs = {layer: _valid_rows(np.array(found[probe]), sample, masks) for layer, probe in probes.items()}
    del found
    return_freed_memory()
    return outputs


def accumulated_errors(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return layer -> signal-to-quantization-noise ratio in dB of what `layer_outputs` found in two models.

    NaN where the float model computes NaN or infinity, or the shapes differ.
    """

    def ratio(exact: np.ndarray, noisy: np.ndarray) -> float:
        comparable = exact.shape == noisy.shape and np.all(np.isfinite(exact))
        return sqnr_db(exact, noisy) if comparable else float("nan")

    return {layer: ratio(exact, after[layer]) for layer, exact in before.items() if layer in after}


def _add_probes(model: ir.Model, names: Mapping[str, str]) -> dict[str, str]:
    """Add a graph output with the first rows of every named value of the main graph; return layer -> its name.

    Of [.., channels] these are rows of channels; of the [batch, channels, ..] of a convolution the first of the batch.
    """
    graph, new = model.graph, Names(model.graph)
    values = {str(value.name): value for node in graph for value in node.outputs}
    tensors = {rows: ir.tensor(np.array([rows]), name=new.new(f"qcompile.probe/{rows}")) for rows in (0, 1, ROWS)}
    ends = {rows: register_initializer(graph, tensor) for rows, tensor in tensors.items()}
    probes = {}
    for layer, name in names.items():
        value = values.get(name)
        producer = None if value is None else value.producer()
        if value is None or producer is None or value.dtype not in (ir.DataType.FLOAT, None):
            continue
        image = is_standard(producer, "Conv", "ConvTranspose")
        flat = ir.node("Flatten", [value], {"axis": 1 if image else -1}, name=new.new(f"qcompile.probe/{name}/flat"))
        bounds = (ends[0], ends[1 if image else ROWS], ends[0])
        rows = ir.node("Slice", [flat.outputs[0], *bounds], name=new.new(f"qcompile.probe/{name}"))
        for node in (flat, rows):
            node.outputs[0].name = new.new(f"{node.name}/output")
        graph.insert_after(producer, [flat, rows])  # not at the end: all values would be kept until then
        rows.outputs[0].dtype = ir.DataType.FLOAT
        graph.outputs.append(rows.outputs[0])
        probes[layer] = str(rows.outputs[0].name)
    return probes


def _valid_rows(rows: np.ndarray, sample: Feed, masks: Sequence[PaddingMask]) -> np.ndarray:
    """Leave out the rows of padded positions, where there is a row for each position of a mask."""
    for mask in masks:
        valid = np.ravel(sample[mask.name] == mask.valid)[:ROWS]
        if len(rows) == len(valid):
            return np.ravel(rows[valid])
    return np.ravel(rows)
