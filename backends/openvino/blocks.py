"""Blocked DequantizeLinear, which OpenVINO computes right in one form only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.errors import UnsupportedError
from qcompile.initializers import new_initializer


def fold_misread_blocks(model: ir.Model) -> None:
    """DequantizeLinear of a constant in blocks, or of 4 bits  ->  the float32 constant.

    OpenVINO 2026.4 takes every blocked weight for one with blocks along the input channels of its linear; blocks along
    the output channels gave results that were wrong by half, or a refusal (measured; compare openvino PR 32918), and 4
    bits with one scale for each output end the process. Weights of linears in blocks along their inputs are hidden
    before, see `decompression`. Raises UnsupportedError for blocks of a value that is computed.
    """
    for node in list(graph.all_nodes(model)):
        if not graph.is_standard(node, "DequantizeLinear"):
            continue
        integers = graph.constant(node.inputs[0])
        four_bits = integers is not None and integers.dtype in (ir.DataType.INT4, ir.DataType.UINT4)
        if not node.attributes.get_int("block_size", 0) and not four_bits:
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


def _dequantize(node: ir.Node, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    length = values.shape[axis] if size else 0

    def of_each(array: np.ndarray) -> np.ndarray:
        if size:
            return np.repeat(array, size, axis).take(np.arange(length), axis)
        return array.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])

    floats: np.ndarray = values.astype(np.float32)
    if zero is not None:
        floats -= of_each(zero.astype(np.float32))
    floats *= of_each(scale.astype(np.float32))
    return floats
