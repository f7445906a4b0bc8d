"""Keeps weights that came quantized as they are."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from qcompile import block_weights, layers, qdq, tied_tables
from qcompile.block_writing import BlockWriter
from qcompile.contract import Finding, Keeps, Pass, Result
from qcompile.errors import NothingMatchedError
from qcompile.graph import Linear, constant, layer_name, readers
from qcompile.initializers import remove_unused
from qcompile.scheme import GroupScheme
from qcompile.stored_blocks import Stored, around_zero, stored_as
from qcompile.untouched import quantized_already

_INTEGERS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


@dataclasses.dataclass(frozen=True)
class KeepWeights(Pass):
    """MatMul(x, W) -> MatMul(x, DequantizeLinear(integers and scales of the file)) + MatMul(block sums of x, minimum)

    The weights are bit for bit those of the file: nothing is rounded again. The minimum is there where the file has one
    for each block; those that read one x share its sums. Tables of embeddings are gathered as integers, then scaled;
    a linear that is tied to one reads the same copy.
    Does not fire on weights that did not come quantized, or in a type with a codebook, on layers that are ignored, on
    tables that anything but a Gather along axis 0 reads, and on linears whose input is of unknown rank.

    Attributes:
        ignore: layers that stay float, by name; bound by `compile`.
        operators: "Linear" and "Embedding" where the backend has such weights; bound by `compile`.
    """

    ignore: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset({"Linear", "Embedding"})

    keeps: ClassVar[Keeps] = "exact"
    looks_for: ClassVar[str] = "weights that are stored in blocks of integers, as GGUF's Q4_0 or Q8_0"

    def call(self, model: ir.Model) -> Result:
        """Keep every linear and table that can be; one finding for each.

        Raises:
            NothingMatchedError: there are weights, none came quantized, and nothing in the model is.
        """
        found, tables, writer = layers.float_linears(model), layers.embeddings(model), BlockWriter(model.graph)
        sources = [stored_as(constant(table), transposed=False) for table in tables]
        sources += [stored_as(constant(linear.weight), transposed=True) for linear in found]
        reasons = [each for each in sources if isinstance(each, str)]
        if sources and len(reasons) == len(sources) and not _has_integers(model):
            raise _none_came_quantized(reasons)
        kept: dict[Stored, ir.Value] = {}
        findings = [self._linear(linear, writer, kept) for linear in found]
        findings += [self._table(table, nodes, writer, kept) for table, nodes in tables.items()]
        remove_unused({linear.weight for linear in found} | tables.keys())
        modified = any(finding.action == "quantized" for finding in findings)
        return Result(model, modified=modified, findings=tuple(findings))

    def _linear(self, linear: Linear, writer: BlockWriter, done: dict[Stored, ir.Value]) -> Finding:
        told = layers.finding(linear, "quantized")
        left_out = layers.left_out(told, self.ignore, self.operators)
        stored = stored_as(constant(linear.weight), transposed=True)
        if linear.x.shape is None:
            stored = "the rank of its input is not known"
        if left_out is not None or isinstance(stored, str):
            return left_out or dataclasses.replace(told, action="kept", reason=str(stored))
        kept, minimum = around_zero(stored.read(), stored.bits)
        scheme = GroupScheme(stored.bits, stored.group_size)
        value = qdq.dequantized_groups(linear.weight, kept, scheme, linear.matmul)
        qdq.replace_input(linear.matmul, linear.weight, value)
        if minimum is not None:
            writer.add_minimum(linear.matmul, minimum)
        else:
            done[stored] = value
        return dataclasses.replace(told, reason=_as_it_came(stored))

    def _table(
        self, table: ir.Value, nodes: list[ir.Node], writer: BlockWriter, done: Mapping[Stored, ir.Value]
    ) -> Finding:
        tensor, value = constant(table), str(nodes[0].outputs[0].name)
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        told = Finding(layer_name(nodes[0]), "quantized", operator="Embedding", value=value, shape=shape)
        left_out = layers.left_out(told, self.ignore, self.operators)
        stored = stored_as(tensor, transposed=False)
        if set(readers(table)) != set(nodes) or any(node.attributes.get_int("axis", 0) != 0 for node in nodes):
            stored = "something else reads its table"
        if left_out is not None or isinstance(stored, str):
            return left_out or dataclasses.replace(told, action="kept", reason=str(stored))
        tied, blocks = block_weights.of_value(done.get(stored)), stored.read()
        name = str(table.name)
        rows = writer.rows(name, blocks) if tied is None else tied_tables.one_copy(tied, name)
        writer.gather(rows, blocks.minimum, nodes)
        return dataclasses.replace(told, reason=_as_it_came(stored))


def _as_it_came(stored: Stored) -> str:
    return f"as the file has it: {stored.kind}, {stored.bits} bits in groups of {stored.group_size}"


def _has_integers(model: ir.Model) -> bool:
    """True where something is quantized already: a product, or a matrix of integers, as a table is stored."""
    small = (value.dtype for value in model.graph.initializers.values() if len(value.shape or ()) > 1)
    return bool(quantized_already(model)) or any(dtype in _INTEGERS for dtype in small)


def _none_came_quantized(reasons: Sequence[str]) -> NothingMatchedError:
    counted = "; ".join(f"of {count}: {reason}" for reason, count in Counter(reasons).most_common(2))
    mend = "Use w4a16-rtn, which quantizes any weights, or give a GGUF file with blocks of integers"
    return NothingMatchedError(
        "pass keep_weights", f"it looks for {KeepWeights.looks_for}, and found none ({counted})", mend
    )
