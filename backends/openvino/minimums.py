"""Minimums of the blocks of a weight, and the sums of blocks of activations that they are multiplied by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.patterns import constant, readers
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov

_IN_FLOAT32 = "precise_0"
"""What OpenVINO calls `ov::DisableFP16Compression`, and writes as "DisablePrecisionConversion" since 2026.4."""


def lower_minimums(model: ov.Model) -> None:
    """MatMul(ReduceSum(Reshape(x)), minimums): sums over rows of one block, and a product that stays in float32.

    OpenVINO takes bfloat16 by itself on CPUs that have it, and rounds the constants of linears to it when it loads the
    model: minimums of blocks would not be those of the file. In float32 the product of SmolLM2's 18 and 48 blocks takes
    8 to 13 us for a token where it took 14 to 24. The mark works in a file that is read, not in the model that it is
    put on. Sums of [tokens, 1, blocks, size], as paged attention has x, take 4 to 7 times as long for 990 tokens as
    those of [tokens, blocks, size] (2 threads, 2026.4).

    Tried without gain: a zero point in float in the place of the minimum, with which OpenVINO does not round the
    activations (24 us for a linear that takes 13 so), and whose weights differ in the last bit; sums by a product with
    ones, by pooling and in two steps; u4 with a zero point of 8 in the place of i4.
    Does not fire on products of other values, on vectors, nor where no other product reads x.
    """
    for node in model.get_ordered_ops():
        total = node.input_value(0).get_node() if node.get_type_name() == "MatMul" else None
        if total is None or constant(node.input_value(1)) is None or not _sums_blocks(total):
            continue
        sums = _in_rows(total)
        node.input(0).replace_source_output(sums.output(0))
        for precise in (sums, node):
            precise.get_rt_info()[_IN_FLOAT32] = ""


def _sums_blocks(total: ov.Node) -> bool:
    """Whether a node sums over the last axis of [.., n, blocks, size], which is x that a product reads too."""
    blocks = total.input_value(0).get_node() if total.get_type_name() == "ReduceSum" else None
    if blocks is None or blocks.get_type_name() != "Reshape":
        return False
    x, shape, axes = blocks.input_value(0), blocks.get_output_partial_shape(0), constant(total.input_value(1))
    split = constant(blocks.input_value(1))
    if split is None or axes is None or len(split) < 3 or shape[-1].is_dynamic or shape[-2].is_dynamic:
        return False
    rank = len(split)
    as_x = x.get_partial_shape().rank == rank - 1 and blocks.get_attributes()["special_zero"] and not split[:-2].any()
    last = axes.size == 1 and axes.item() % rank == rank - 1 and not total.get_attributes()["keep_dims"]
    return as_x and last and any(port.get_node().get_type_name() == "MatMul" for port in readers(x))


def _in_rows(total: ov.Node) -> ov.Node:
    """ReduceSum(Reshape(x, [.., n, blocks, size]))  ->  Reshape(ReduceSum(Reshape(x, [.., n blocks, size])))."""
    factory, blocks = opset(), total.input_value(0).get_node()
    *lead, _, count, size = blocks.get_output_partial_shape(0)
    apart, together = ([0] * len(lead) + [-1, each.get_length()] for each in (size, count))
    rows = factory.reshape(blocks.input_value(0), np.array(apart), True)
    sums = factory.reduce_sum(rows, np.array([len(lead) + 1]), False)
    sums.set_friendly_name(total.get_friendly_name())
    return factory.reshape(sums, np.array(together), True)
