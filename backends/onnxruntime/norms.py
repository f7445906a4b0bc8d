"""Residual additions in front of norms."""

from __future__ import annotations

import onnx_ir as ir

from qcompile import graph
from qcompile.backends import Site

APART, FUSED = "apart", "fused"


def residual_additions(model: ir.Model) -> list[Site]:
    """Return the sites of Add(x, y) -> LayerNormalization, in graph order.

    "fused" is SkipLayerNormalization, which ONNX Runtime makes of it by itself where x and y have one shape of three
    axes and nothing else reads the sum; "apart" are two kernels. Measured in us, apart and fused, one thread, Zen 5
    with AVX512-VNNI, onnxruntime 1.31: 6 and 7 (1 x 384), 9 and 32 (16 x 384), 39 and 216 (128 x 384), 73 and 428
    (128 x 768), 290 and 1722 (1024 x 384), 10 and 21 (128 x 32). Elsewhere the two are the same kernels. Does not apply
    to types other than float32, for which Sum, the other name of Add, has no kernel.
    """
    found: dict[ir.Node, Site] = {}
    for node in model.graph:
        if not graph.is_standard(node, "LayerNormalization") or node.inputs[0] is None:
            continue
        add = node.inputs[0].producer()
        if add is None or not graph.is_standard(add, "Add") or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
            continue
        found.setdefault(add, Site("addition in front of a norm", (add, node), (APART, FUSED)))
    return list(found.values())


def keep_residual_additions(model: ir.Model) -> None:
    """Add(x, y) -> LayerNormalization  becomes  Sum(x, y) -> LayerNormalization, where that site is written apart.

    ONNX Runtime fuses an Add into the norm, and leaves the same addition under the name Sum alone.
    """
    for site in residual_additions(model):
        if site.form == APART:
            site.nodes[0].op_type = "Sum"
