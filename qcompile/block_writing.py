"""Writes what the canonical form of a weight in blocks has no word for: a minimum of each block, and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.graph import Names
from qcompile.initializers import register_initializer
from qcompile.stored_blocks import Blocks
from qcompile.tied_tables import RowBlocks


class BlockWriter:
    """Writes into the main graph of a model; what linears that read one value have in common is written once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._names = graph, Names(graph)
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}
        self._constants: dict[tuple[int, ...], ir.Value] = {}

    def add_minimum(self, matmul: ir.Node, minimum: np.ndarray) -> None:
        """MatMul(x, W) -> MatMul(x, W) + MatMul(sums of blocks of x, minimum); the Add takes over its name.

        W then stands for the weight without the minimum, float32 [blocks, outputs], of each of its blocks. The rank and
        the channels of x are known.
        """
        self._names = Names(self._graph)
        old, x = matmul.outputs[0], matmul.inputs[0]
        assert x is not None
        name, after = str(old.name), list(old.uses())
        matmul.name = matmul.name or name  # the layer is still called so
        weight = self._constant(f"{name}.minimum", minimum)
        product = ir.node("MatMul", [self._block_sums(x, len(minimum), matmul), weight])
        total = ir.node("Add", [old, product.outputs[0]])
        total.metadata_props.update(matmul.metadata_props)
        for node, part in ((product, "of_minimum"), (total, "with_minimum")):
            node.name = self._names.new(f"{matmul.name}.{part}")
            node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
        old.name, product.outputs[0].name = self._names.new(f"{name}.of_blocks"), self._names.new(f"{name}.of_minimum")
        total.outputs[0].name = name
        self._graph.insert_after(matmul, [product, total])
        for use in after:
            use.node.replace_input_with(use.idx, total.outputs[0])
        for index, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[index] = total.outputs[0]

    def rows(self, name: str, blocks: Blocks) -> RowBlocks:
        """Store a table [rows, columns] of this name; integers of fewer bits in 8: runtimes gather no smaller ones."""
        self._names = Names(self._graph)
        integers = self._constant(f"{name}.quantized", blocks.integers)
        size = blocks.integers.shape[1] // blocks.scale.shape[1]
        places = self._constant(f"{name}.blocks", np.arange(blocks.integers.shape[1]) // size)
        return RowBlocks(integers, self._constant(f"{name}.scale", blocks.scale), places)

    def gather(self, stored: RowBlocks, minimum: np.ndarray | None, nodes: Sequence[ir.Node]) -> None:
        """Gather(W, ids) -> Cast(Gather(int8 W, ids)) * scales of its blocks, gathered too, + their minimums.

        The rows are dequantized after they were gathered, so that the table is never expanded. The last of the nodes
        takes over the output.

        Args:
            stored: the table, with blocks.
            minimum: what is added to each block, float32 [rows, blocks]; None: nothing.
            nodes: Gathers that read it, along axis 0.
        """
        self._names = Names(self._graph)
        shift = None if minimum is None else self._constant(f"{stored.integers.name}.minimum", minimum)
        for node in nodes:
            ids, old, blocks = node.inputs[1], node.outputs[0], stored.block_of
            assert ids is not None
            assert blocks is not None
            name, operands = str(old.name), []
            rows = self._node("Gather", [stored.integers, ids], node, f"{name}.rows", stored.integers.dtype, axis=0)
            value = self._node("Cast", [rows], node, f"{name}.cast", to=ir.DataType.FLOAT)
            for part in (stored.scale, shift):
                if part is not None:
                    of_blocks = self._node("Gather", [part, ids], node, f"{name}.of_blocks", axis=0)
                    operands.append(self._node("Gather", [of_blocks, blocks], node, f"{name}.of_channels", axis=-1))
            if shift is not None:
                value = self._node("Mul", [value, operands[0]], node, f"{name}.scaled")
            last = ir.node("Mul" if shift is None else "Add", [value, operands[-1]], name=node.name)
            last.metadata_props.update(node.metadata_props)
            ir.convenience.replace_nodes_and_values(self._graph, node, [node], [last], [old], [last.outputs[0]])

    def _block_sums(self, x: ir.Value, blocks: int, before: ir.Node) -> ir.Value:
        """Return the sum of each block of channels: x [.., channels] -> [.., blocks]."""
        if (x, blocks) not in self._sums:
            assert x.shape is not None
            lead, numbers = list(x.shape[:-1]), [0] * (len(x.shape) - 1)
            split = self._node("Reshape", [x, self._numbers([*numbers, blocks, -1])], before, f"{x.name}.blocks")
            sums = self._node("ReduceSum", [split, self._numbers([-1])], before, f"{x.name}.block_sums", keepdims=0)
            sums.shape = ir.Shape([*lead, blocks])
            self._sums[x, blocks] = sums
        return self._sums[x, blocks]

    def _node(
        self,
        operator: str,
        inputs: list[ir.Value],
        before: ir.Node,
        name: str,
        dtype: ir.DataType | None = ir.DataType.FLOAT,
        **attributes: int,
    ) -> ir.Value:
        """Write a node in front of another, and return its value, of the same name."""
        free = self._names.new(name)
        node = ir.node(operator, inputs, attributes, name=free)
        node.outputs[0].name, node.outputs[0].type = free, None if dtype is None else ir.TensorType(dtype)
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array), name=self._names.new(name))
        return register_initializer(self._graph, tensor)

    def _numbers(self, numbers: list[int]) -> ir.Value:
        key = tuple(numbers)
        if key not in self._constants:
            name = f"qcompile.numbers_{'_'.join(map(str, numbers))}".replace("-", "minus_")
            self._constants[key] = self._constant(name, np.array(numbers, np.int64))
        return self._constants[key]
