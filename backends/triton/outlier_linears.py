"""Linears of integers some of whose input channels are multiplied in float, as one product: LLM.int8()."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import products
from qcompile.backends.triton.integer_linears import LINEAR, TOKENS

OUTLIERS = "OutlierLinear"


def fuse_outlier_linears(model: ir.Model) -> None:
    """IntegerLinear(q, ..) + MatMul(Gather(x, O), W[O])  ->  OutlierLinear(q, .., x, O, W[O]^T).

    And QuantizeTokens(x * mask), with a mask of 0 and 1 for each channel  ->  QuantizeTokens(x, mask != 0). O and W[O]
    are constants (Dettmers et al. 2022, "LLM.int8()", section 3.2). Does not apply where something else reads one of
    the products, where q is not made for each token of what has the shape of x, or where q has a zero point: the kernel
    has none.
    """
    names = graph.Names(model.graph)
    for node in list(model.graph):
        if (node.domain, node.op_type) == (products.DOMAIN, TOKENS):
            _mask(model, names, node)
        elif graph.is_standard(node, "Add"):
            _join(model, names, node)


def _mask(model: ir.Model, names: graph.Names, tokens: ir.Node) -> None:
    value = tokens.inputs[0]
    masked = None if value is None else value.producer()
    if value is None or masked is None or not graph.is_standard(masked, "Mul"):
        return
    x, mask = masked.inputs if graph.constant(masked.inputs[1]) is not None else reversed(masked.inputs)
    array = graph.constant_array(mask)
    width = None if x is None or x.shape is None else x.shape[-1]
    if array is None or array.shape != (width,) or not np.isin(array, (0, 1)).all():
        return
    inliers = products.new_constant(model, names, f"{value.name}.kept", array != 0)
    call = products.call(TOKENS, [x, inliers], outputs=2)
    ir.convenience.replace_nodes_and_values(model.graph, tokens, [tokens], [call], tokens.outputs, call.outputs)


def _join(model: ir.Model, names: graph.Names, add: ir.Node) -> None:
    made = [value.producer() for value in add.inputs if value is not None and graph.sole_reader(value) is add]
    linear = next((node for node in made if node is not None and node.op_type == LINEAR), None)
    product = next((node for node in made if node is not None and graph.is_standard(node, "MatMul")), None)
    if linear is None or product is None or linear.inputs[2] is not None or product.inputs[0] is None:
        return
    gather, rows = product.inputs[0].producer(), graph.constant_array(product.inputs[1])
    if gather is None or rows is None or not graph.is_standard(gather, "Gather") or rows.ndim != 2:
        return
    x, channels = gather.inputs[0], graph.constant_array(gather.inputs[1])
    rank = -1 if x is None or x.shape is None else len(x.shape)
    last = gather.attributes.get_int("axis", 0) in (-1, rank - 1)
    if x is None or x.dtype != ir.DataType.FLOAT or channels is None or channels.ndim != 1 or not last:
        return
    q, scale, _, weight, weight_scale, _, bias = (*linear.inputs, None)[:7]
    tokens = None if q is None else q.producer()
    if tokens is None or tokens.op_type != TOKENS or not products.alike(tokens.inputs[0], x):
        return
    integers = graph.constant(weight)
    assert integers is not None
    positive = np.where(channels < 0, channels + integers.shape[1], channels)
    outliers = products.new_constant(model, names, f"{product.outputs[0].name}.channels", positive.astype(np.int32))
    columns = products.new_constant(model, names, f"{product.outputs[0].name}.columns", rows.T)
    call = products.call(OUTLIERS, [q, scale, weight, weight_scale, x, outliers, columns, bias])
    old = [add, linear, product]
    ir.convenience.replace_nodes_and_values(model.graph, add, old, [call], add.outputs, call.outputs)
