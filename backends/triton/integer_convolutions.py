"""Convolutions of 8-bit weights and activations, as convolutions of integers that are held in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import integer_operands, products

CONVOLUTION, TRANSPOSED = "IntegerConv", "IntegerConvTranspose"


def fuse_integer_convolutions(model: ir.Model) -> None:
    """Conv(DequantizeLinear(q), DequantizeLinear(w, s), b)  ->  IntegerConv(q, its scale, its zero point, w, s, b).

    The same for ConvTranspose. q is computed, of 8 bits with one scale. Does not apply to weights that
    `integer_operands.weight` refuses.
    """
    names = graph.Names(model.graph)
    for node in list(model.graph):
        if not graph.is_standard(node, "Conv", "ConvTranspose"):
            continue
        transposed = node.op_type == "ConvTranspose"
        x, weight, bias = (*node.inputs, None)[:3]
        if x is None or weight is None:
            continue
        activation, found = integer_operands.activation(x), integer_operands.weight(weight, axis=int(transposed))
        if activation is None or found is None:
            continue
        # Channels of a ConvTranspose count group by group, and the weight has those of one.
        scale = np.tile(found.scale, node.attributes.get_int("group", 1)) if transposed else found.scale
        inputs = [
            activation.q,
            activation.scale,
            activation.zero_point,
            products.new_constant(model, names, f"{weight.name}.integers", found.integers),
            products.new_constant(model, names, f"{weight.name}.scales", scale),
            bias,
        ]
        call = products.call(TRANSPOSED if transposed else CONVOLUTION, inputs, dict(node.attributes))
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], node.outputs, call.outputs)
