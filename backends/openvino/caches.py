"""The cache of a decoder: inputs and outputs in the portable graph, states of the runtime in OpenVINO's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.decoder_caches import Cache
from qcompile.backends.openvino.runtime import openvino, opset
from qcompile.initializers import shared_initializer

if TYPE_CHECKING:
    import openvino as ov

BEAMS = "beam_idx"
"""Name that openvino_genai gives the input that says which row of the cache each row goes on from."""


def state_of(cache: Cache) -> str:
    """Identifier of the state of a cache, as OpenVINO's own exporter writes it."""
    return f"{cache.past}{cache.present}"


def measure_caches_whole(model: ir.Model, caches: Sequence[Cache]) -> None:
    """Shape(past, start, end)  ->  Gather(Shape(past), start...end - 1).

    OpenVINO's paged attention knows the length of the cache in this form alone, and refuses the model in another.
    """
    pasts = {cache.past for cache in caches}
    for node in list(model.graph):
        value = node.inputs[0] if node.inputs else None
        if not graph.is_standard(node, "Shape") or value is None or value.name not in pasts or value.shape is None:
            continue
        axes = np.arange(len(value.shape))[node.attributes.get_int("start", 0) : node.attributes.get_int("end", 4)]
        indices = shared_initializer(model.graph, f"axes.{'_'.join(map(str, axes))}", axes.astype(np.int64))
        whole = ir.node("Shape", [value], name=f"{graph.layer_name(node)}/whole")
        some = ir.node("Gather", [whole.outputs[0], indices], {"axis": 0}, name=f"{graph.layer_name(node)}/some")
        some.outputs[0].type, some.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [whole, some], [node.outputs[0]], [some.outputs[0]]
        )


def keep_caches(model: ov.Model, caches: Sequence[Cache]) -> None:
    """Parameter past, Result present  ->  Gather(ReadValue, beam_idx) and Assign, with a further input beam_idx.

    The states are empty at first, with as many rows as beam_idx has.
    """
    factory, package = opset(), openvino()
    parameters = {each.get_friendly_name(): each for each in model.get_parameters()}
    results = {name: each for each in model.get_results() for name in each.input_value(0).get_names()}
    beams = factory.parameter([-1], package.Type.i32, name=BEAMS)
    beams.output(0).get_tensor().set_names({BEAMS})
    rows = factory.shape_of(beams, "i64")
    sinks = []
    for cache in caches:
        past, present = parameters[cache.past], results[cache.present]
        variable = _variable(cache, past.get_partial_shape(), past.get_element_type())
        _, heads, _, size = past.get_partial_shape()
        sizes = [factory.constant(np.array([each])) for each in (heads.get_length(), 0, size.get_length())]
        empty = factory.broadcast(np.float32(0), factory.concat([rows, *sizes], 0))
        state = factory.gather(factory.read_value(empty, variable), beams, np.int64(0))
        past.output(0).replace(state.output(0))
        sinks.append(factory.assign(present.input_value(0).get_node(), variable))
        model.remove_result(present)
        model.remove_parameter(past)
    model.add_parameters([beams])
    model.add_sinks(sinks)
    model.validate_nodes_and_infer_types()


def _variable(cache: Cache, shape: ov.PartialShape, dtype: ov.Type) -> ov.op.util.Variable:
    from openvino.op.util import Variable, VariableInfo

    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = shape, dtype, state_of(cache)
    return Variable(info)
