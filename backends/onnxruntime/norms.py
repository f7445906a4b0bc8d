"""Residual additions in front of norms."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph


def keep_residual_additions(model: ir.Model) -> None:
    """Add(x, y) -> LayerNormalization  becomes  Sum(x, y) -> LayerNormalization.

    ONNX Runtime fuses the Add into SkipLayerNormalization, whose kernel takes 205 us where Add and
    LayerNormalization take 35 (128 x 384, one thread); it leaves the same addition under the name Sum alone. Does not
    apply to types other than float32, for which Sum has no kernel.
    """
    for node in list(model.graph):
        if not graph.is_standard(node, "LayerNormalization") or node.inputs[0] is None:
            continue
        add = node.inputs[0].producer()
        if add is None or not graph.is_standard(add, "Add") or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
            continue
        add.op_type = "Sum"
