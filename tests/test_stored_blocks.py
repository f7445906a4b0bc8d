"""Weights that know how their file has them, and the signed form of their blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.frontend.gguf_blocks import FORMS, unpack
from qcompile.initializers import lazy_tensor
from qcompile.stored_blocks import Blocks, Stored, StoredTensor, around_zero, stored_as
from tests.frontend.gguf_files import KIND, random_blocks

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
STORED = Stored("Q4_0", 4, 3, lambda: Blocks(ARRAY.astype(np.int8), np.ones((2, 1), np.float32), None))


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.name)
def test_signed_integers_are_the_same_matrix(kind: KIND) -> None:
    blocks, bits = unpack(random_blocks(kind, 24, 512), kind), FORMS[kind].bits
    kept, minimum = around_zero(blocks, bits)
    assert kept.integers.dtype == np.int8
    assert (kept.integers.min(), kept.integers.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    weight = kept.weight(FORMS[kind].group_size)
    if minimum is not None:
        weight = weight + np.repeat(minimum, FORMS[kind].group_size, axis=0)
    assert np.array_equal(weight.T, blocks.dequantize())  # also bit for bit, but for the sign of a zero


def test_where_the_minimum_would_be_rounded_the_zero_point_moves() -> None:
    """1 + 8 * 2**-28 has more digits than float32."""
    scale = np.array([[0.5, 2.0**-28]], np.float32)
    integers = np.tile(np.arange(16, dtype=np.uint8), (1, 2))
    kept, minimum = around_zero(Blocks(integers, scale, np.ones((1, 2), np.float32)), 4)
    assert kept.zero_point is not None
    assert minimum is not None
    assert kept.zero_point.tolist() == [[0], [-8]]
    assert minimum.tolist() == [[5.0], [1.0]]
    assert kept.weight(16)[:, 0].tolist() == [
        *(0.5 * np.arange(-8, 8)).tolist(),
        *(2.0**-28 * np.arange(16)).tolist(),
    ]


def test_the_transpose_alone_still_knows() -> None:
    tensor = StoredTensor(lambda: ARRAY, (2, 3), "w", STORED)
    turned = tensor.turned("v")
    assert (turned.name, turned.shape.numpy(), turned.dtype) == ("v", (3, 2), ir.DataType.FLOAT)
    assert np.array_equal(turned.numpy(), ARRAY.T)
    assert stored_as(turned, transposed=True) is stored_as(tensor, transposed=False) is STORED
    assert np.array_equal(turned.turned("w").numpy(), ARRAY)
    assert stored_as(turned.turned("w"), transposed=False) is STORED
    halved = lazy_tensor(tensor, "h", (2, 3), lambda array: array / 2)
    assert stored_as(halved, transposed=False) == "it did not come quantized"


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (None, "it did not come quantized"),
        (ir.tensor(ARRAY), "it did not come quantized"),
        (StoredTensor(lambda: ARRAY, (2, 3), "w", "it is F16"), "it is F16"),
        (StoredTensor(lambda: ARRAY, (2, 3), "w", STORED), "its blocks run the other way"),
    ],
)
def test_why_integers_cannot_be_kept(tensor: ir.TensorProtocol | None, reason: str) -> None:
    assert stored_as(tensor, transposed=True) == reason
