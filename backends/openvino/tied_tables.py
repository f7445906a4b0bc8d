"""Rows that an embedding gathers of the weight that a head multiplies by: OpenVINO reads both as they are stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.block_weights import BlockWeight


def gather_of_weight(model: ir.Model, weight: BlockWeight, value: ir.Value) -> None:
    """Cast(Gather(q, ids)) * Gather(Gather(s, ids), blocks)  ->  Gather(Transpose(W), ids), where W is of q and s.

    In this form OpenVINO gathers and dequantizes in one operator, of 4 bits too, which it would keep in 8 otherwise
    (measured, 2026.4). Does not apply to rows that are read in another way.

    Args:
        model: its graph is changed.
        weight: of the head.
        value: what stands for it, float32 [inputs, outputs], before all nodes of the graph.
    """
    table, scale = (block_weights.transposed(each) for each in weight.node.inputs[:2])
    if table is None or scale is None:
        return
    names = graph.Names(model.graph)
    for rows in graph.readers(table):
        product = _dequantized(rows, scale, weight) if graph.is_standard(rows, "Gather") else None
        if product is None:
            continue
        turned = ir.node("Transpose", [value], {"perm": [1, 0]}, name=names.new(f"{value.name}.rows"))
        gathered = ir.node("Gather", [turned.outputs[0], rows.inputs[1]], {"axis": 0}, name=names.new(str(rows.name)))
        turned.outputs[0].type = product.outputs[0].type
        turned.outputs[0].shape = ir.Shape((weight.outputs, weight.inputs))
        turned.outputs[0].name = str(turned.name)
        made = [turned, gathered]
        ir.convenience.replace_nodes_and_values(
            model.graph, product, [product], made, product.outputs, gathered.outputs
        )


def _dequantized(rows: ir.Node, scale: ir.Value, weight: BlockWeight) -> ir.Node | None:
    """Return the Mul behind a Gather of integers that makes the weight's own numbers of them."""
    cast = graph.sole_reader(rows.outputs[0])
    if rows.attributes.get_int("axis", 0) or cast is None or not graph.is_standard(cast, "Cast"):
        return None
    product = graph.sole_reader(cast.outputs[0])
    if product is None or not graph.is_standard(product, "Mul") or product.inputs[0] is not cast.outputs[0]:
        return None
    spread = None if product.inputs[1] is None else product.inputs[1].producer()
    found = None if spread is None or spread.inputs[0] is None else spread.inputs[0].producer()
    if not graph.is_standard(spread, "Gather") or not graph.is_standard(found, "Gather"):
        return None
    assert spread is not None
    assert found is not None
    blocks = graph.constant_array(spread.inputs[1])
    own = np.arange(weight.inputs) // weight.block_size
    same = found.inputs[0] is scale and found.inputs[1] is rows.inputs[1] and not found.attributes.get_int("axis", 0)
    in_order = blocks is not None and np.array_equal(blocks, own) and spread.attributes.get_int("axis", 0) == -1
    return product if same and in_order else None
