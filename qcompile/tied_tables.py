"""Tables of embeddings that a linear multiplies by too, transposed: one copy of the integers and scales for both."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from qcompile import block_weights, graph, layers
from qcompile.block_weights import BlockWeight
from qcompile.graph import Linear
from qcompile.initializers import register_initializer, remove_unused, shared_initializer

_TABLE = "qcompile.table"
"""Metadata of the DequantizeLinear of a weight: name of the table that it was, transposed."""


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


def table_of(linear: Linear, model: ir.Model) -> ir.Value | None:
    """Return the table of an embedding that the weight of a linear is, transposed; None where it is none."""
    shape = None if linear.weight.shape is None else tuple(reversed(linear.weight.shape.numpy()))
    tables = [table for table in layers.embeddings(model) if table.shape is not None and tuple(table.shape) == shape]
    weight = graph.constant_array(linear.weight) if tables else None
    for table in tables:
        rows = graph.constant_array(table)
        if weight is not None and rows is not None and np.array_equal(rows.T, weight):
            return table
    return None


def tied_bytes(model: ir.Model) -> int:
    """Return how many bytes the weights of linears take that are tables of embeddings: in a float file one is both."""
    tied = {linear.weight for linear in layers.float_linears(model) if table_of(linear, model) is not None}
    return sum(weight.const_value.nbytes for weight in tied if weight.const_value is not None)


def mark(dequantized: ir.Value, table: ir.Value) -> None:
    """Say, of a weight that was quantized, which table it was: no solver leaves it what could be compared with it."""
    node = dequantized.producer()
    assert node is not None
    node.metadata_props[_TABLE] = str(table.name)


def quantized_in_linear(model: ir.Model, table: ir.Value) -> BlockWeight | None:
    """Return the weight of a linear that is this table, transposed and quantized; None where none is.

    None too for weights with zero points, and with one scale for each output.

    Args:
        model: has the DequantizeLinear of the weight in its main graph, marked.
        table: of an embedding, float32 [rows, channels].
    """
    for node in model.graph:
        weight = block_weights.of_node(node) if node.metadata_props.get(_TABLE) == table.name else None
        if weight is not None and "block_size" in node.attributes and weight.signed:
            return None if weight.zero_points(weight.block_size).any() else weight
    return None


def one_copy(weight: BlockWeight, name: str) -> RowBlocks:
    """Store a weight by rows of its outputs, let its linears read it through a Transpose, and return the rows.

    The integers are INT8 whatever their range: ONNX gathers no smaller ones. Backends look at the range.

    Args:
        weight: with a sign and without zero points; its DequantizeLinear is replaced.
        name: of the table, from which the names of the initializers come.
    """
    node, body = weight.node, weight.node.graph
    assert isinstance(body, ir.Graph)
    names, size = graph.Names(body), weight.block_size
    rows = []
    for part, array in (("quantized", weight.integers.numpy().astype(np.int8)), ("scale", weight.scales(size))):
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
