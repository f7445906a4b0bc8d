"""Linears of 8-bit weights and activations, as products of integers."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from qcompile import graph
from qcompile.backends.triton import integer_operands, products
from qcompile.backends.triton.integer_operands import Activation
from qcompile.qdq import DOMAIN, PER_TOKEN

LINEAR, TOKENS = "IntegerLinear", "QuantizeTokens"


def fuse_integer_linears(model: ir.Model) -> None:
    """MatMul(x', DequantizeLinear(w, s)) + b  ->  IntegerLinear(q, its scale, its zero point, w^T, s, sums of w s, b).

    x' is DequantizeLinear(q) of 8 bits with one scale, static or of a DynamicQuantizeLinear; or
    QuantizeDequantizePerToken(x), in whose place QuantizeTokens(x) makes q and a scale for each token, once for all
    that read it. Does not apply to weights that `integer_operands.weight` refuses, or that have no two axes.
    """
    names = graph.Names(model.graph)
    stored_weight = functools.cache(lambda value: _weight(model, names, value))
    tokens: dict[ir.Value, Activation] = {}
    for product in products.products(model):
        stored = stored_weight(product.weight)
        if stored is None:
            continue
        x = integer_operands.activation(product.x) or _tokens(model, product.x, tokens)
        if x is not None:
            node = products.call(LINEAR, [x.q, x.scale, x.zero_point, *stored, product.bias])
            products.replace(model, product, node)


def _tokens(model: ir.Model, x: ir.Value, made: dict[ir.Value, Activation]) -> Activation | None:
    """Integers and a scale for each token, in the place of the values that a function rounds."""
    node = x.producer()
    if node is None or (node.domain, node.op_type) != (DOMAIN, PER_TOKEN):
        return None
    if x not in made:
        call = products.call(TOKENS, [node.inputs[0]], outputs=2)
        q, scale = call.outputs
        q.type, scale.type = ir.TensorType(ir.DataType.INT8), ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, call)
        made[x] = Activation(q, scale, None)
    return made[x]


def _weight(model: ir.Model, names: graph.Names, value: ir.Value) -> list[ir.Value] | None:
    """The weight as tensor cores read it, int8 [outputs, inputs], its scales, and the sums of what they stand for."""
    found = integer_operands.weight(value, axis=1)
    if found is None or found.integers.ndim != 2:
        return None
    sums = found.integers.sum(axis=0, dtype=np.int64) * found.scale.astype(np.float64)
    parts = {"integers": found.integers.T, "scales": found.scale, "sums": sums.astype(np.float32)}
    return [products.new_constant(model, names, f"{value.name}.{part}", array) for part, array in parts.items()]
