"""Norms whose result is quantized for each token, as one kernel."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.integer_linears import TOKENS

RMS_NORM, LAYER_NORM = "RMSNormQuantize", "LayerNormQuantize"
_KERNELS = {"RMSNormalization": RMS_NORM, "LayerNormalization": LAYER_NORM}


def fuse_norms(model: ir.Model) -> None:
    """QuantizeTokens(RMSNormalization(x, w))  ->  RMSNormQuantize(x, None, w), and so for LayerNormalization(x, w, b).

    The normalized row is not written to memory. Does not apply where something else reads it, where the norm is over
    other axes than the last, and to a w or b that is no float32 constant of one number for each channel.
    """
    for node in list(model.graph):
        if (node.domain, node.op_type) != (products.DOMAIN, TOKENS) or len(node.inputs) > 1:
            continue  # with outliers: what multiplies these reads the norm
        value = node.inputs[0]
        norm = None if value is None else value.producer()
        if value is None or norm is None or graph.sole_reader(value) is not node or not is_of_channels(norm):
            continue
        name = _KERNELS[norm.op_type]
        call = products.call(name, [norm.inputs[0], None, *norm.inputs[1:]], epsilon(norm), outputs=2)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], node.outputs, call.outputs)


def epsilon(norm: ir.Node) -> dict[str, float]:
    """The attribute of a norm, as the kernels have it."""
    return {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}


def is_of_channels(norm: ir.Node) -> bool:
    """Whether a node is a norm over the last axis alone, with float32 constants of one number for each channel."""
    if not graph.is_standard(norm, *_KERNELS):
        return False
    constants = [graph.constant(value) for value in norm.inputs[1:] if value is not None]
    x = norm.inputs[0]
    if x is None or x.shape is None or x.dtype != ir.DataType.FLOAT or not constants:
        return False
    channels = (x.shape[-1],)
    vectors = all(each is not None and tuple(each.shape) == channels and each.dtype == x.dtype for each in constants)
    return vectors and norm.attributes.get_int("axis", -1) in (-1, len(x.shape) - 1) and len(norm.outputs) == 1
