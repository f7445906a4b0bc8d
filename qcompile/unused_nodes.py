"""Nodes and initializers that nothing reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from qcompile.graph import all_nodes


class RemoveUnusedNodes(ir.passes.InPlacePass):
    """Nodes and initializers that nothing reads -> gone, and with an If or Loop what only its bodies read.

    onnx_ir's own pass does the work, but a node that it removes stays a reader through the nodes of its subgraphs: what
    those alone read would be calibrated, quantized and computed for nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove until a round leaves no reader behind."""
        modified = False
        while True:
            before = list(all_nodes(model))
            modified |= common.RemoveUnusedNodesPass()(model).modified
            kept = set(all_nodes(model))
            readers = [node for node in before if node not in kept and any(value is not None for value in node.inputs)]
            for node in readers:
                node.resize_inputs(0)
            if not readers:
                return ir.passes.PassResult(model, modified=modified)
