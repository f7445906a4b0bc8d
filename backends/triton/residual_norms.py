"""Norms of the sum with a residual, as one kernel that writes both."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.normalized_tokens import LAYER_NORM, RMS_NORM, epsilon, is_of_channels

ADD_RMS_NORM, ADD_LAYER_NORM = "AddRMSNorm", "AddLayerNorm"
_KERNELS = {"RMSNormalization": ADD_RMS_NORM, "LayerNormalization": ADD_LAYER_NORM}


def fuse_residuals(model: ir.Model) -> None:
    """RMSNormalization(s = Add(x, r), w)  ->  AddRMSNorm(x, r, w) of two outputs, the norm and s.

    The same for LayerNormalization(s, w, b), and RMSNormQuantize(s, None, w) -> RMSNormQuantize(x, r, w) of three
    outputs, so for LayerNormQuantize. Whatever else reads s, a later residual and another norm, reads the output. Does
    not apply where x and r are not float32 of the same shape as far as is known, and to norms that `is_of_channels`
    refuses.
    """
    for node in list(model.graph):
        total = node.inputs[0] if node.inputs else None
        add = None if total is None else total.producer()
        if total is None or add is None or not graph.is_standard(add, "Add") or not products.alike(*add.inputs):
            continue
        if (node.domain, node.op_type) in ((products.DOMAIN, RMS_NORM), (products.DOMAIN, LAYER_NORM)):
            name, parameters = node.op_type, node.inputs[2:]
        elif is_of_channels(node):
            name, parameters = _KERNELS[node.op_type], node.inputs[1:]
        else:
            continue
        call = products.call(name, [*add.inputs, *parameters], epsilon(node), outputs=len(node.outputs) + 1)
        old, new = [*node.outputs, total], call.outputs
        ir.convenience.replace_nodes_and_values(model.graph, add, [node, add], [call], old, new)
