"""Zero points of activations: free in OpenVINO when they are part of the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.quantized import QuantizedWeight, quantized_weight
from qcompile.initializers import register_initializer


def fold_zero_points(model: ir.Model) -> None:
    """s(q - z) W + b  =  s q W + (b - s z 1W): take the zero point of a static activation into the bias of its linears.

    OpenVINO computes the left side with one more operation on every output, which also keeps it from using the scale
    of the integer kernel itself. Does nothing where the dequantized activation is read by anything but linears with
    8-bit weights, or is an output of the model.
    """
    names = graph.Names(model.graph)
    for dequantize in list(model.graph):
        parameters = _static_activation(dequantize)
        linears = [(node, quantized_weight(node)) for node in graph.readers(dequantize.outputs[0])]
        if parameters is None or dequantize.outputs[0].is_graph_output():
            continue
        scale, zero_point = parameters
        weights = [(node, weight) for node, weight in linears if weight is not None]
        if len(weights) < len(linears):
            continue
        for node, weight in weights:
            _add_to_bias(model, node, _shift(weight, scale, zero_point), names)
        point = dequantize.inputs[2]
        assert point is not None
        name = names.new(f"{point.name}_folded_{dequantize.outputs[0].name}")
        zero = ir.tensor(np.zeros_like(graph.constant_array(point)), name=name)
        dequantize.replace_input_with(2, register_initializer(model.graph, zero))


def _static_activation(node: ir.Node) -> tuple[float, int] | None:
    """Scale and zero point of DequantizeLinear(QuantizeLinear(x)) with one constant scale and a zero point, not 0."""
    if not graph.is_standard(node, "DequantizeLinear") or len(node.inputs) < 3 or node.inputs[0] is None:
        return None
    if not graph.is_standard(node.inputs[0].producer(), "QuantizeLinear"):
        return None
    scale, zero_point = graph.constant_array(node.inputs[1]), graph.constant_array(node.inputs[2])
    if scale is None or zero_point is None or scale.size != 1 or not zero_point.any():
        return None
    return float(scale.item()), int(zero_point.item())


def _shift(weight: QuantizedWeight, scale: float, zero_point: int) -> np.ndarray[Any, Any]:
    return (-scale * zero_point * weight.column_sums()).astype(np.float32)


def _add_to_bias(model: ir.Model, matmul: ir.Node, shift: np.ndarray, names: graph.Names) -> None:
    output = matmul.outputs[0]
    add = graph.sole_reader(output)
    index = _bias_index(add, output, len(shift))
    if add is not None and index is not None:
        bias = add.inputs[index]
        assert bias is not None
        total = ir.tensor(graph.constant_array(bias) + shift, name=names.new(f"{bias.name}_folded_{output.name}"))
        add.replace_input_with(index, register_initializer(model.graph, total))
        output.name = names.new(f"{output.name}_unshifted")
        return
    value = register_initializer(model.graph, ir.tensor(shift, name=names.new(f"{output.name}_folded")))
    add = ir.node("Add", [output, value], name=f"{matmul.name}/zero_point")
    add.outputs[0].type, add.outputs[0].shape = output.type, output.shape
    model.graph.insert_after(matmul, add)
    ir.convenience.replace_all_uses_with(output, add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, output)
    # What the rest of the graph reads keeps its name: that of outputs, and of values that the verifier compares.
    output.name, add.outputs[0].name = names.new(f"{output.name}_unshifted"), output.name


def _bias_index(add: ir.Node | None, output: ir.Value, channels: int) -> int | None:
    if add is None or not graph.is_standard(add, "Add"):
        return None
    index = 1 if add.inputs[0] is output else 0
    bias = graph.constant_array(add.inputs[index])
    return index if bias is not None and bias.shape == (channels,) else None
