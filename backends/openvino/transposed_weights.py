"""Weights that are multiplied with as they are, and transposed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import new_initializer


def separate_transposed_weights(model: ir.Model) -> None:
    """MatMul(x, W) and MatMul(x, Transpose(W))  ->  MatMul(x, W) and MatMul(x, V), with V a second initializer.

    Of a square W, OpenVINO 2026.4 packs the weight of one of the two products and takes it for the other one too. Of
    constants the canonical form has made two already (`FoldWeightViews`); this is for those that are inputs as well,
    which OpenVINO reads as constants. Leaves alone weights that only one of the two reads.
    """
    for node in list(model.graph):
        weight = node.inputs[0] if graph.is_standard(node, "Transpose") else None
        if weight is None or weight.const_value is None or len(graph.readers(weight)) == 1:
            continue
        if tuple(node.attributes.get_ints("perm", (1, 0))) != (1, 0) or node.outputs[0].is_graph_output():
            continue
        array = np.ascontiguousarray(weight.const_value.numpy().T)
        name = graph.unique_name(model.graph, f"{weight.name}.transposed")
        node.outputs[0].replace_all_uses_with(new_initializer(model.graph, name, array))
        model.graph.remove(node, safe=True)
