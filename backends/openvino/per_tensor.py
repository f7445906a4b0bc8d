"""Activations with one scale per tensor that is known at run time only: integer linears with constant ranges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.openvino.quantized import QuantizedWeight, quantized_weight
from qcompile.initializers import register_initializer


def scale_outputs_at_run_time(model: ir.Model) -> None:
    """MatMul(s(q - z), W)  ->  (MatMul(q, W) - z 1W) s  where s, z and q come from DynamicQuantizeLinear.

    OpenVINO's own quantization at run time is in groups of channels of a token, finer than per tensor; its integer
    kernels for one scale per tensor want a constant one. The integers themselves have a constant range: they go
    through a Q/DQ pair of scale 1, which changes nothing, and the scale is applied to the product.

    Leaves linears with asymmetric weights as they are.
    """
    names = graph.Names(model.graph)
    constants: dict[str, ir.Value] = {}
    operands: dict[ir.Node, tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        weight = quantized_weight(node)
        dequantize = None if weight is None else per_tensor(node.inputs[0])
        if weight is None or dequantize is None or weight.zero_point.any():
            continue
        if dequantize not in operands:
            operands[dequantize] = _integers(model, dequantize, names, constants)
        _scale_output(model, node, weight, dequantize, operands[dequantize], names)


def per_tensor(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear behind a DynamicQuantizeLinear that makes the value, or None."""
    node = None if value is None else value.producer()
    if node is None or not graph.is_standard(node, "DequantizeLinear") or node.inputs[0] is None:
        return None
    return node if graph.is_standard(node.inputs[0].producer(), "DynamicQuantizeLinear") else None


def _integers(
    model: ir.Model, dequantize: ir.Node, names: graph.Names, constants: dict[str, ir.Value]
) -> tuple[ir.Value, ir.Value]:
    """Write the integers as float behind a Q/DQ pair, and the zero point as float, in front of the node."""
    for name, array in (("one", np.ones((), np.float32)), ("zero", np.zeros((), np.uint8))):
        if name not in constants:
            tensor = ir.tensor(array, name=names.new(f"qcompile.{name}"))
            constants[name] = register_initializer(model.graph, tensor)
    one, zero = constants["one"], constants["zero"]
    tape = ir.tape.Tape()
    plain = tape.op("Cast", [dequantize.inputs[0]], {"to": ir.DataType.FLOAT})
    pair = tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [plain, one, zero]), one, zero])
    point = tape.op("Cast", [dequantize.inputs[2]], {"to": ir.DataType.FLOAT})
    _name(tape, dequantize, names)
    model.graph.insert_before(dequantize, tape.nodes)
    pair.shape, pair.type = dequantize.outputs[0].shape, dequantize.outputs[0].type
    return pair, point


def _scale_output(
    model: ir.Model,
    matmul: ir.Node,
    weight: QuantizedWeight,
    dequantize: ir.Node,
    operands: tuple[ir.Value, ir.Value],
    names: graph.Names,
) -> None:
    integers, point = operands
    output = matmul.outputs[0]
    column_sums = ir.tensor(weight.column_sums().astype(np.float32), name=names.new(f"{output.name}.sums"))
    sums = register_initializer(model.graph, column_sums)
    tape = ir.tape.Tape()
    shifted = tape.op("Sub", [output, tape.op("Mul", [point, sums])])
    scaled = tape.op("Mul", [shifted, dequantize.inputs[1]])
    _name(tape, matmul, names)
    scaled.shape, scaled.type = output.shape, output.type
    matmul.replace_input_with(0, integers)
    ir.convenience.replace_all_uses_with(output, scaled, replace_graph_outputs=True)
    tape.nodes[1].replace_input_with(0, output)
    model.graph.insert_after(matmul, tape.nodes)
    # What the rest of the graph reads keeps its name: that of outputs, and of values that the verifier compares.
    output.name, scaled.name = scaled.name, output.name


def _name(tape: ir.tape.Tape, node: ir.Node, names: graph.Names) -> None:
    for made in tape.nodes:
        made.name = names.new(f"{node.name}/{made.op_type}")
        made.outputs[0].name = names.new(f"{node.outputs[0].name}/{made.op_type}")
