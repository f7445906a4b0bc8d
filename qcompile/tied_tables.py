"""Tables of embeddings that a linear multiplies by too, transposed: one copy of the integers and scales for both."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph
from qcompile.block_weights import BlockWeight
from qcompile.initializers import register_initializer, remove_unused, shared_initializer

_ROWS = 4096
"""Rows that are compared at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowBlocks:
    """A table [rows, channels] with a scale for each row, or for each block of channels of a row.

    Attributes:
        integers: INT8 [rows, channels].
        scale: float32 [rows, blocks].
        block_of: INT64 [channels], the block of each channel; None where a row has one scale.
    """

    integers: ir.Value
    scale: ir.Value
    block_of: ir.Value | None = None

    def values(self, rows: slice = slice(None)) -> np.ndarray:
        """Return what it stands for, or some of its rows, float32 [rows, channels]."""
        integers, scale = graph.constant_array(self.integers), graph.constant_array(self.scale)
        blocks = None if self.block_of is None else graph.constant_array(self.block_of)
        assert integers is not None
        assert scale is not None
        result: np.ndarray = integers[rows].astype(np.float32)
        result *= scale[rows] if blocks is None else scale[rows][:, blocks]
        return result


def rounded_in_linear(model: ir.Model, table: np.ndarray) -> BlockWeight | None:
    """Return the weight of a linear that is this table, transposed and rounded to 8 bits; None where none is.

    That is found by what it holds: its integers are those that the table gives, divided by its scales. Integers of
    another solver, with zero points, of fewer bits, and with one scale for each output are not.

    Args:
        model: has the DequantizeLinear of the weight in its main graph.
        table: float32 [rows, channels].
    """
    for node in model.graph:
        weight = block_weights.of_node(node)
        if weight is not None and (weight.outputs, weight.inputs) == table.shape and _is_rounded(weight, table):
            return weight
    return None


def _is_rounded(weight: BlockWeight, table: np.ndarray) -> bool:
    in_blocks = "block_size" in weight.node.attributes
    if not in_blocks or weight.integers.dtype != ir.DataType.INT8 or weight.zero_points(weight.block_size).any():
        return False
    integers, scales = weight.integers.numpy(), weight.scales(weight.block_size)
    places = np.arange(weight.inputs) // weight.block_size
    for start in range(0, len(table), _ROWS):
        rows = slice(start, start + _ROWS)
        rounded = np.clip(np.rint(table[rows] / scales[:, rows][places].T), -128, 127)
        if not np.array_equal(rounded, integers[:, rows].T):
            return False
    return True


def one_copy(weight: BlockWeight, name: str) -> RowBlocks:
    """Store a weight by rows of its outputs, let its linears read it through a Transpose, and return the rows.

    Args:
        weight: of 8 bits without zero points; its DequantizeLinear is replaced.
        name: of the table, from which the names of the initializers come.
    """
    node, body = weight.node, weight.node.graph
    assert isinstance(body, ir.Graph)
    names, size = graph.Names(body), weight.block_size
    rows = []
    for part, array in (("quantized", weight.integers.numpy()), ("scale", weight.scales(size))):
        tensor = ir.tensor(np.ascontiguousarray(array.T), name=names.new(f"{name}.{part}"))
        rows.append(register_initializer(body, tensor))
    turned = [ir.node("Transpose", [row], {"perm": [1, 0]}, name=names.new(f"{row.name}.transpose")) for row in rows]
    attributes = {"axis": 0, "block_size": size}
    again = ir.node("DequantizeLinear", [each.outputs[0] for each in turned], attributes, name=node.name)
    for each, row in zip(turned, rows, strict=True):
        each.outputs[0].name, each.outputs[0].type = names.new(f"{row.name}.transposed"), row.type
        each.outputs[0].shape = ir.Shape(tuple(reversed(row.shape or ())))
    old, new = node.outputs[0], again.outputs[0]
    new.name, new.type, new.shape = names.new(f"{name}.dequantized"), old.type, old.shape
    body.insert_before(node, [*turned, again])
    old.replace_all_uses_with(new)
    read = [value for value in node.inputs if value is not None]
    body.remove(node, safe=True)
    remove_unused(read)
    places = shared_initializer(body, f"qcompile.blocks_{size}_of_{weight.inputs}", np.arange(weight.inputs) // size)
    return RowBlocks(rows[0], rows[1], places)
