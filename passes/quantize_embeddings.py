"""Stores embedding tables in int8."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.graph import Names, constant, layer_name, readers
from qcompile.initializers import new_initializer, remove_unused
from qcompile.layers import embeddings, left_out
from qcompile.scheme import Scheme
from qcompile.solvers import broken_numbers
from qcompile.solvers.affine import dequantize, quantize_weight
from qcompile.solvers.sqnr import sqnr_db

_SCHEME = Scheme("int8", "per_channel")


@dataclasses.dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Gather(W, ids) -> Cast(Gather(int8 W, ids)) * Gather(scale, ids), one symmetric scale for each row of the table.

    The rows are dequantized after they were gathered, so that the table is never expanded. Does not fire on tables
    that anything but a Gather along axis 0 reads, that are not float32 [rows, channels], that hold what
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
        findings = [self._quantize(table, nodes) for table, nodes in tables if table.dtype == ir.DataType.FLOAT]
        modified = any(finding.action == "quantized" for finding in findings)
        return Result(model, modified=modified, findings=tuple(findings))

    def _quantize(self, table: ir.Value, nodes: list[ir.Node]) -> Finding:
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
        quantized, scale, zero_point = quantize_weight(weight, _SCHEME, 0)
        graph = nodes[0].graph
        assert isinstance(graph, ir.Graph)
        integers = new_initializer(graph, f"{table.name}.quantized", quantized)
        scales = new_initializer(graph, f"{table.name}.scale", scale[:, None])
        for node in nodes:
            _replace(graph, node, integers, scales)
        remove_unused([table])
        return dataclasses.replace(told, sqnr_db=sqnr_db(weight, dequantize(quantized, scale, zero_point, axis=0)))


def _replace(graph: ir.Graph, node: ir.Node, integers: ir.Value, scales: ir.Value) -> None:
    """Write the three nodes in place of the Gather; the last takes over its output."""
    output, name, names = node.outputs[0], str(node.outputs[0].name), Names(graph)
    rows = ir.node("Gather", [integers, node.inputs[1]], {"axis": 0}, name=str(node.name))
    rows.metadata_props.update(node.metadata_props)
    cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=names.new(f"{name}.cast"))
    scale = ir.node("Gather", [scales, node.inputs[1]], {"axis": 0}, name=names.new(f"{name}.gather_scale"))
    product = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=names.new(f"{name}.dequantize"))
    for made, part, dtype in ((rows, "quantized", ir.DataType.INT8), (cast, "cast", ir.DataType.FLOAT)):
        made.outputs[0].name, made.outputs[0].shape = names.new(f"{name}.{part}"), output.shape
        made.outputs[0].type = ir.TensorType(dtype)
    scale.outputs[0].name = names.new(f"{name}.scale")
    scale.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [rows, cast, scale, product], [output], [product.outputs[0]]
    )
