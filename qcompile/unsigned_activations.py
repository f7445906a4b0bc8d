"""The type of quantized activations: int8, or uint8 for the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.initializers import shared_initializer


def quantize_activations_to_uint8(model: ir.Model, chosen: Callable[[ir.Node], bool] = lambda _: True) -> None:
    """Store int8 activations as uint8: q + 128 with zero point + 128, which stands for the same real numbers.

    For backends that compute one of the two types faster, or right. Does not apply to a quantized value that an
    operator other than DequantizeLinear reads, that is an output of the model, or that has several scales.

    Args:
        model: rewritten in place.
        chosen: which QuantizeLinear nodes; all.
    """
    for node in list(model.graph):
        if not graph.is_standard(node, "QuantizeLinear") or not chosen(node):
            continue
        readers = graph.readers(node.outputs[0])
        if node.outputs[0].is_graph_output() or not all(_reads_int8(node, reader) for reader in readers):
            continue
        scale, zero_point = node.inputs[1], graph.constant_array(_zero_point(node))
        assert scale is not None
        moved = np.asarray((0 if zero_point is None else zero_point.astype(np.int32)) + 128).astype(np.uint8)
        shifted = shared_initializer(model.graph, f"{scale.name}.zero_point", moved)
        for each in (node, *readers):
            _set_zero_point(each, shifted)
        node.attributes.pop("output_dtype", None)
        # A new type: a clone of a model shares its type objects with the original.
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)


def _reads_int8(quantize: ir.Node, reader: ir.Node) -> bool:
    """True for DequantizeLinear, in the main graph, of what quantizes to int8 with one constant scale."""
    if not graph.is_standard(reader, "DequantizeLinear") or reader.inputs[0] is not quantize.outputs[0]:
        return False
    scale = graph.constant(reader.inputs[1])
    if scale is None or scale.size != 1 or reader.attributes.get_int("block_size", 0) != 0:
        return False
    zero_point = graph.constant(_zero_point(quantize))
    if _zero_point(quantize) is None:
        is_int8 = quantize.attributes.get_int("output_dtype", 0) == ir.DataType.INT8
    else:
        is_int8 = zero_point is not None and zero_point.dtype == ir.DataType.INT8
    return is_int8 and _same_zero_point(zero_point, _zero_point(reader))


def _same_zero_point(quantize: ir.TensorProtocol | None, reader: ir.Value | None) -> bool:
    """A reader may leave out a zero point of 0; one with another zero point than the quantizer's shifts its values."""
    ours = 0 if quantize is None else quantize.numpy()
    theirs = graph.constant_array(reader) if reader is not None else np.int8(0)
    return theirs is not None and bool(np.all(theirs == ours))


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _set_zero_point(node: ir.Node, zero_point: ir.Value) -> None:
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, zero_point)
