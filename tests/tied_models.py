"""A model with one table for its embedding and its head, quantized as the recipes do it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.passes.quantize_embeddings import QuantizeEmbeddings
from qcompile.passes.quantize_weights import QuantizeWeights
from qcompile.scheme import GroupScheme
from qcompile.weight_only import HEAD
from tests.passes.quantizable import parse

ROWS = 300
TEXT = "g (int64[n, t] ids) => (float[n, t, 300] y) { h = Gather(table, ids) x = Tanh(h) y = MatMul(x, head) }"
IDS = np.random.default_rng(1).integers(0, ROWS, (2, 5))


def table(channels: int = 128) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, channels)).astype(np.float32)


def tied(channels: int = 128, head: GroupScheme | None = HEAD) -> ir.Model:
    """Return the model with weights in groups, rounded to nearest; the head reads the table if its scheme allows it."""
    weight = table(channels)
    model = parse(TEXT, table=weight, head=np.ascontiguousarray(weight.T))
    QuantizeWeights(head=head, range_grid=0)(model)
    QuantizeEmbeddings(min_elements=1)(model)
    return model


def rounded(channels: int = 128, size: int = 64, bits: int = 8) -> np.ndarray:
    """Return the table as one scale for each block of channels leaves it; written out on its own."""
    result, most = table(channels), 2 ** (bits - 1)
    for start in range(0, channels, size):
        block = result[:, start : start + size]
        extreme = np.take_along_axis(block, np.abs(block).argmax(axis=1)[:, None], axis=1)
        scale = extreme / np.float32(-most)
        block[...] = np.clip(np.rint(block / scale), -most, most - 1) * scale
    return result
