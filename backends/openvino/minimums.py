"""Minimums of the blocks of a weight, which a model that runs in bfloat16 would round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.backends.openvino.patterns import constant, readers

if TYPE_CHECKING:
    import openvino as ov

_IN_FLOAT32 = "precise_0"
"""What OpenVINO calls `ov::DisableFP16Compression`, and writes as "DisablePrecisionConversion" since 2026.4."""


def keep_minimums_precise(model: ov.Model) -> None:
    """MatMul(ReduceSum(Reshape(x)), constant)  ->  the same, computed in float32 where the model is in bfloat16.

    OpenVINO takes bfloat16 by itself on CPUs that have it, and rounds the constants of linears to it when it loads the
    model: minimums of blocks would not be those of the file. In float32 the product of SmolLM2's 18 and 48 blocks takes
    8 to 13 us for a token where it took 15 to 24, and more where there are many: the first token of 990 comes 4% later
    (2 threads, 2026.4). The mark works in a file that is read, not in the model that it is put on. Does not fire on
    products of other values, nor where no other product reads x.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul" and constant(node.input_value(1)) is not None and _sums_blocks(node):
            node.get_rt_info()[_IN_FLOAT32] = ""


def _sums_blocks(product: ov.Node) -> bool:
    """Whether a product is of sums over blocks of what another product reads."""
    total = product.input_value(0).get_node()
    blocks = total.input_value(0).get_node() if total.get_type_name() == "ReduceSum" else None
    if blocks is None or blocks.get_type_name() != "Reshape":
        return False
    return any(port.get_node().get_type_name() == "MatMul" for port in readers(blocks.input_value(0)))
