"""Blocked DequantizeLinear, which OpenVINO computes right in one form only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.errors import UnsupportedError
from qcompile.initializers import new_initializer


def fold_misread_blocks(model: ir.Model) -> None:
    """DequantizeLinear of a constant in blocks  ->  the float32 constant, unless the blocks run along a linear's input.

    OpenVINO 2026.4 takes every blocked weight for one with blocks along the input channels of its linear; blocks along
    the output channels gave results that were wrong by half, or a refusal (measured; compare openvino PR 32918).

    Keeps DequantizeLinear(W[K, N], axis=0) in blocks that is read as the second operand of MatMul. Raises
    UnsupportedError for blocks of a value that is computed.
    """
    for node in list(graph.all_nodes(model)):
        if not graph.is_standard(node, "DequantizeLinear") or not node.attributes.get_int("block_size", 0):
            continue
        if _blocks_along_inputs(node):
            continue
        arrays = [array for array in map(graph.constant_array, node.inputs) if array is not None]
        if len(arrays) < len(node.inputs):
            raise UnsupportedError(
                f"node {graph.layer_name(node)!r}",
                "OpenVINO computes DequantizeLinear in blocks right for constants only",
                "Use one scale for each channel, or the backend 'onnxruntime'",
            )
        output = node.outputs[0]
        assert output.name is not None
        assert isinstance(node.graph, ir.Graph)
        folded = new_initializer(node.graph, f"{output.name}_float", _dequantize(node, *arrays))
        replacement = ir.node("Identity", [folded], name=f"{output.name}/float")
        node.graph.insert_after(node, replacement)
        ir.convenience.replace_all_uses_with(output, replacement.outputs[0], replace_graph_outputs=True)
        output.name, replacement.outputs[0].name = f"{output.name}_blocks", output.name
        node.graph.remove(node, safe=True)


def _blocks_along_inputs(node: ir.Node) -> bool:
    values = graph.constant(node.inputs[0])
    if values is None or len(values.shape) != 2 or node.attributes.get_int("axis", 1) not in (0, -2):
        return False
    uses = node.outputs[0].uses()
    return bool(uses) and all(graph.is_standard(use.node, "MatMul") and use.idx == 1 for use in uses)


def _dequantize(node: ir.Node, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    length = values.shape[axis]
    floats: np.ndarray = values.astype(np.float32)
    if zero is not None:
        floats -= np.repeat(zero.astype(np.float32), size, axis).take(np.arange(length), axis)
    return floats * np.repeat(scale.astype(np.float32), size, axis).take(np.arange(length), axis)
