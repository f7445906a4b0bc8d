"""Stores embedding tables in int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile import tied_tables
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.graph import Names, constant, layer_name, readers
from qcompile.initializers import new_initializer, remove_unused
from qcompile.layers import embeddings, left_out
from qcompile.scheme import Scheme
from qcompile.solvers import broken_numbers
from qcompile.solvers.affine import quantize_weight
from qcompile.solvers.sqnr import decibels, powers
from qcompile.tied_tables import RowBlocks

_SCHEME = Scheme("int8", "per_channel")

_ELEMENTS = 2**22
"""Of a table, that are rounded at a time."""


@dataclasses.dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Gather(W, ids) -> Cast(Gather(int8 W, ids)) * Gather(scale, ids), one symmetric scale for each row of the table.

    The rows are dequantized after they were gathered, so that the table is never expanded. Where a linear multiplies by
    the same table, transposed and quantized in blocks before, both read one copy with its scales. Does not fire
    on tables that anything but a Gather along axis 0 reads, that are not float32 [rows, channels], that hold what
    `broken_numbers.of_weight` refuses, and on those with fewer than `min_elements`, which are not worth three nodes.

    Attributes:
        min_elements: smallest table, in elements.
        ignore: layers that stay float, by name; bound by `compile`.
        operators: what the backend computes in integers, or stores in 8 bits; bound by `compile`.
    """

    min_elements: int = 65536
    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Embedding"})

    keeps: ClassVar[Keeps] = "lossy"
    looks_for: ClassVar[str] = "Gather along axis 0 of a constant float32 table"

    @property
    def may_match_nothing(self) -> bool:
        """Not every model has embeddings."""
        return True

    def call(self, model: ir.Model) -> Result:
        """Quantize each table once, however many Gathers read it."""
        tables = embeddings(model).items()
        findings = [self._quantize(model, table, nodes) for table, nodes in tables if table.dtype == ir.DataType.FLOAT]
        modified = any(finding.action == "quantized" for finding in findings)
        return Result(model, modified=modified, findings=tuple(findings))

    def _quantize(self, model: ir.Model, table: ir.Value, nodes: list[ir.Node]) -> Finding:
        tensor = constant(table)
        assert tensor is not None
        shape, value = tuple(tensor.shape.numpy()), str(nodes[0].outputs[0].name)
        told = Finding(layer_name(nodes[0]), "quantized", operator="Embedding", value=value, shape=shape)
        refusal = left_out(told, self.ignore, self.operators)
        if refusal is not None:
            return refusal
        if tensor.size < self.min_elements:
            return dataclasses.replace(told, action="kept", reason=f"its table has only {tensor.size} elements")
        if set(readers(table)) != set(nodes) or any(node.attributes.get_int("axis", 0) != 0 for node in nodes):
            return dataclasses.replace(told, action="kept", reason="something else reads its table")
        weight = tensor.numpy()
        broken = broken_numbers.of_weight(weight)
        if broken:
            return dataclasses.replace(told, action="kept", reason=f"its table {broken}")
        graph = nodes[0].graph
        assert isinstance(graph, ir.Graph)
        linear = tied_tables.quantized_in_linear(model, table)
        name = str(table.name)
        stored = _rounded(graph, name, weight) if linear is None else tied_tables.one_copy(linear, name)
        for node in nodes:
            _replace(graph, node, stored)
        remove_unused([table])
        return dataclasses.replace(told, sqnr_db=_sqnr_db(weight, stored))


def _pieces(table: np.ndarray) -> Iterator[slice]:
    """Yield some rows at a time."""
    together = max(1, _ELEMENTS // table.shape[1])
    for start in range(0, len(table), together):
        yield slice(start, start + together)


def _sqnr_db(table: np.ndarray, stored: RowBlocks) -> float:
    sums = [powers(table[rows], stored.values(rows)) for rows in _pieces(table)]
    return decibels(sum(power for power, _ in sums), sum(noise for _, noise in sums))


def _rounded(graph: ir.Graph, name: str, weight: np.ndarray) -> RowBlocks:
    quantized, scale = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for rows in _pieces(weight):
        quantized[rows], scale[rows], _ = quantize_weight(weight[rows], _SCHEME, 0)
    integers = new_initializer(graph, f"{name}.quantized", quantized)
    return RowBlocks(integers, new_initializer(graph, f"{name}.scale", scale[:, None]))


def _replace(graph: ir.Graph, node: ir.Node, stored: RowBlocks) -> None:
    """Write three or four nodes in place of the Gather; the last takes over its output."""
    output, name, names = node.outputs[0], str(node.outputs[0].name), Names(graph)
    rows = ir.node("Gather", [stored.integers, node.inputs[1]], {"axis": 0}, name=str(node.name))
    rows.metadata_props.update(node.metadata_props)
    cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=names.new(f"{name}.cast"))
    scales = [ir.node("Gather", [stored.scale, node.inputs[1]], {"axis": 0}, name=names.new(f"{name}.gather_scale"))]
    if stored.block_of is not None:
        inputs, spread = [scales[0].outputs[0], stored.block_of], names.new(f"{name}.spread_scale")
        scales.append(ir.node("Gather", inputs, {"axis": -1}, name=spread))
    product = ir.node("Mul", [cast.outputs[0], scales[-1].outputs[0]], name=names.new(f"{name}.dequantize"))
    for new, part, dtype in ((rows, "quantized", ir.DataType.INT8), (cast, "cast", ir.DataType.FLOAT)):
        new.outputs[0].name, new.outputs[0].shape = names.new(f"{name}.{part}"), output.shape
        new.outputs[0].type = ir.TensorType(dtype)
    for scale in scales:
        scale.outputs[0].name, scale.outputs[0].type = names.new(f"{name}.scale"), ir.TensorType(ir.DataType.FLOAT)
    made = [rows, cast, *scales, product]
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], [product.outputs[0]])
