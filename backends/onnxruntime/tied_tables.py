"""One copy of a table for the embedding that gathers its rows and the linear that multiplies by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.backends.onnxruntime.block_products import Storage
from qcompile.block_weights import BlockWeight
from qcompile.initializers import shared_initializer

_BYTE = 8


def share_with_embedding(
    model: ir.Model, weight: BlockWeight, stored: Storage, operands: list[ir.Value | None], names: graph.Names
) -> None:
    """Cast(Gather(q, ids))  ->  Cast(Reshape(Gather(B, ids))) - middle, where MatMulNBits reads the integers q as B.

    Several that share a byte are taken apart behind the Gather. The scales become those of the table, where its blocks
    are those of the product. Does not apply to what nothing else gathers, to a last block that is not filled, to ids of
    an unknown rank, and to rows that are read as integers.
    """
    table, scale = (block_weights.transposed(value) for value in weight.node.inputs[:2])
    if table is None or scale is None or weight.inputs % stored.block_size:
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
            _gather(model, rows, operands[0], stored.bits, weight.inputs, names)


def _is_to_float(node: ir.Node) -> bool:
    return graph.is_standard(node, "Cast") and node.attributes.get_int("to", 0) == ir.DataType.FLOAT


def _gather(
    model: ir.Model, rows: ir.Node, packed: ir.Value | None, bits: int, channels: int, names: graph.Names
) -> None:
    """Let a Gather read bytes [rows, blocks, bytes] of integers without a sign, and take them apart behind it."""
    assert rows.inputs[1] is not None
    assert rows.inputs[1].shape is not None
    gathered, rank = rows.outputs[0], len(rows.inputs[1].shape)
    casts, shape, name = graph.readers(gathered), gathered.shape, str(gathered.name)
    rows.replace_input_with(0, packed)
    gathered.type, gathered.shape = ir.TensorType(ir.DataType.UINT8), None
    tape = ir.tape.Tape()
    sizes = _constant(model, f"rows_of_{rank}_axes_and_{channels}", [0] * rank + [channels], np.int64)
    joined = tape.op("Reshape", [_apart(model, tape, gathered, bits), sizes])
    joined.shape = shape
    for node in tape.nodes:
        node.name = node.outputs[0].name = names.new(f"{name}.{node.op_type.lower()}")
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    model.graph.insert_after(rows, tape.nodes)
    middle = _constant(model, f"middle_of_{bits}_bits", 2 ** (bits - 1), np.float32)
    for cast in casts:
        cast.replace_input_with(0, joined)
        old = cast.outputs[0]
        signed = ir.node("Sub", [old, middle], name=names.new(f"{old.name}.subtract"))
        signed.outputs[0].name, signed.outputs[0].type = names.new(f"{old.name}.signed"), old.type
        signed.outputs[0].shape = old.shape
        old.replace_all_uses_with(signed.outputs[0])
        signed.replace_input_with(0, old)
        model.graph.insert_after(cast, signed)


def _apart(model: ir.Model, tape: ir.tape.Tape, gathered: ir.Value, bits: int) -> ir.Value:
    """Return uint8 [.., bytes] as numbers of so many bits, [.., bytes, numbers of a byte], the lowest bits first."""
    if bits == _BYTE:
        return gathered
    last, mask = _constant(model, "last", [-1], np.int64), _constant(model, f"mask_{bits}", 2**bits - 1, np.uint8)
    parts = []
    for place in range(0, _BYTE, bits):
        shift = _constant(model, f"shift_{place}", place, np.uint8)
        moved = tape.op("BitShift", [gathered, shift], {"direction": "RIGHT"}) if place else gathered
        parts.append(tape.op("Unsqueeze", [tape.op("BitwiseAnd", [moved, mask]), last]))
    return tape.op("Concat", parts, {"axis": -1})


def _constant(model: ir.Model, word: str, numbers: int | list[int], dtype: type) -> ir.Value:
    return shared_initializer(model.graph, f"qcompile.{word}", np.array(numbers, dtype))
