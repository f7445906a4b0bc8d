"""One copy of a table for the embedding that gathers its rows and the linear that multiplies by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.backends.onnxruntime.block_products import Storage
from qcompile.block_weights import BlockWeight
from qcompile.initializers import shared_initializer

_MIDDLE = 128
"""What MatMulNBits subtracts from integers of 8 bits, which have no sign."""


def share_with_embedding(
    model: ir.Model, weight: BlockWeight, stored: Storage, operands: list[ir.Value | None], names: graph.Names
) -> None:
    """Cast(Gather(q, ids))  ->  Cast(Reshape(Gather(B, ids))) - 128, where MatMulNBits reads the integers q as B.

    The scales become those of the table, where its blocks are those of the product. Does not apply to what nothing else
    gathers, to a last block that is not filled, to ids of an unknown rank, and to rows that are read as integers.
    """
    table, scale = (block_weights.transposed(value) for value in weight.node.inputs[:2])
    if table is None or scale is None or stored.bits != weight.bits or weight.inputs % stored.block_size:
        return
    if stored.block_size == weight.block_size:
        own = operands[1]
        operands[1] = scale
        if own is not None:
            model.graph.initializers.pop(str(own.name))
    for rows in [reader for reader in graph.readers(table) if graph.is_standard(reader, "Gather")]:
        ids, casts = rows.inputs[1], graph.readers(rows.outputs[0])
        known = ids is not None and ids.shape is not None and rows.attributes.get_int("axis", 0) == 0
        if known and all(_is_to_float(cast) for cast in casts):
            _gather(model, rows, operands[0], weight.inputs, names)


def _is_to_float(node: ir.Node) -> bool:
    return graph.is_standard(node, "Cast") and node.attributes.get_int("to", 0) == ir.DataType.FLOAT


def _gather(model: ir.Model, rows: ir.Node, integers: ir.Value | None, channels: int, names: graph.Names) -> None:
    """Let a Gather read integers [rows, blocks, block size] without a sign, and subtract the middle behind its Cast."""
    assert rows.inputs[1] is not None
    assert rows.inputs[1].shape is not None
    rows.replace_input_with(0, integers)
    gathered, rank = rows.outputs[0], len(rows.inputs[1].shape)
    shape = shared_initializer(
        model.graph, f"qcompile.rows_of_{rank}_axes_and_{channels}", np.array([0] * rank + [channels], np.int64)
    )
    middle = shared_initializer(model.graph, "qcompile.middle_of_8_bits", np.array(_MIDDLE, np.float32))
    joined = ir.node("Reshape", [gathered, shape], name=names.new(f"{gathered.name}.join"))
    joined.outputs[0].name, joined.outputs[0].shape = names.new(f"{gathered.name}.joined"), gathered.shape
    joined.outputs[0].type = gathered.type = ir.TensorType(ir.DataType.UINT8)
    gathered.shape = None
    model.graph.insert_after(rows, joined)
    for cast in graph.readers(gathered):
        if cast is joined:
            continue
        cast.replace_input_with(0, joined.outputs[0])
        old = cast.outputs[0]
        signed = ir.node("Sub", [old, middle], name=names.new(f"{old.name}.subtract"))
        signed.outputs[0].name, signed.outputs[0].type = names.new(f"{old.name}.signed"), old.type
        signed.outputs[0].shape = old.shape
        old.replace_all_uses_with(signed.outputs[0])
        signed.replace_input_with(0, old)
        model.graph.insert_after(cast, signed)
