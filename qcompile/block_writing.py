"""Writes what the canonical form of a weight in blocks has no word for: a minimum of each block, and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qcompile.graph import Names
from qcompile.initializers import register_initializer
from qcompile.stored_blocks import Blocks


class BlockWriter:
    """Writes into the main graph of a model; what linears that read one value have in common is written once.

    Args:
        graph: nothing else gives new names in it meanwhile.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._names = graph, Names(graph)
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}
        self._constants: dict[tuple[int, ...], ir.Value] = {}

    def add_minimum(self, matmul: ir.Node, minimum: np.ndarray) -> None:
        """MatMul(x, W) -> MatMul(x, W) + MatMul(sums of blocks of x, minimum); the Add takes over its name.

        W then stands for the weight without the minimum, float32 [blocks, outputs], of each of its blocks. The rank and
        the channels of x are known.
        """
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

    def gather(self, table: ir.Value, blocks: Blocks, nodes: Sequence[ir.Node]) -> None:
        """Gather(W, ids) -> Reshape(Cast(Gather(int8 W in blocks, ids)) * Gather(scale, ids) + Gather(minimum, ids)).

        The rows are dequantized after they were gathered, so that the table is never expanded. The last of the nodes
        takes over the output. Integers of fewer bits are stored in 8, as runtimes gather no smaller ones.

        Args:
            table: [rows, columns].
            blocks: what it is.
            nodes: Gathers that read it, along axis 0, whose ids have a known rank.
        """
        count, (rows, columns) = blocks.scale.shape[1], blocks.integers.shape
        integers = self._constant(f"{table.name}.quantized", blocks.integers.reshape(rows, count, -1))
        scale = self._constant(f"{table.name}.scale", blocks.scale[:, :, None])
        minimum = blocks.minimum
        shift = None if minimum is None else self._constant(f"{table.name}.minimum", minimum[:, :, None])
        for node in nodes:
            self._gather(node, integers, scale, shift, columns)

    def _gather(self, node: ir.Node, integers: ir.Value, scale: ir.Value, shift: ir.Value | None, columns: int) -> None:
        ids, old = node.inputs[1], node.outputs[0]
        assert ids is not None
        assert ids.shape is not None
        name = str(old.name)

        def gathered(source: ir.Value, part: str) -> ir.Value:
            return self._node("Gather", [source, ids], node, f"{name}.{part}", source.dtype, axis=0)

        rows = gathered(integers, "quantized")
        value = self._node("Cast", [rows], node, f"{name}.cast", to=ir.DataType.FLOAT)
        value = self._node("Mul", [value, gathered(scale, "scale")], node, f"{name}.scaled")
        if shift is not None:
            value = self._node("Add", [value, gathered(shift, "minimum")], node, f"{name}.shifted")
        joined = ir.node("Reshape", [value, self._numbers([0] * len(ids.shape) + [columns])], name=node.name)
        joined.metadata_props.update(node.metadata_props)
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], [joined], [old], [joined.outputs[0]])

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
