"""Blocks of GGUF taken apart: bit for bit what the gguf package dequantizes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from qcompile.frontend.gguf_blocks import FORMS, unpack
from tests.frontend.gguf_files import HALVES, random_blocks


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.name)
def test_integers_scales_and_minimums_are_the_weights_bit_for_bit(kind: gguf.GGMLQuantizationType) -> None:
    raw = random_blocks(kind, 40, 512)
    blocks, form = unpack(raw, kind), FORMS[kind]
    expected = gguf.dequantize(raw, kind)
    assert np.array_equal(blocks.dequantize().view(np.uint32), expected.view(np.uint32))
    assert blocks.integers.shape == (40, 512)
    assert blocks.scale.shape == (40, 512 // form.group_size)
    assert (blocks.minimum is None) == (blocks.integers.dtype == np.int8)
    # all integers that these bits have, and no other, are there
    low = -(2 ** (form.bits - 1)) if blocks.minimum is None else 0
    assert np.array_equal(np.unique(blocks.integers), np.arange(low, low + 2**form.bits))


def test_every_type_that_integers_represent_is_tried() -> None:
    assert set(FORMS) == set(HALVES)


def test_a_minimum_is_no_integer_zero_point() -> None:
    """Why a minimum is carried: of blocks quantized from ordinary weights hardly one has an integer -minimum/scale."""
    weights = np.random.default_rng(0).normal(0, 0.02, (256, 1024)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = unpack(gguf.quantize(weights, kind), kind)
    assert blocks.minimum is not None
    zero_points = -blocks.minimum / blocks.scale
    assert np.mean(zero_points == np.round(zero_points)) < 0.02


def test_the_columns_of_blocks_that_are_not_contiguous() -> None:
    raw = random_blocks(gguf.GGMLQuantizationType.Q4_1, 8, 64)
    order = np.array([3, 0, 7, 1])
    assert np.array_equal(
        unpack(raw[order], gguf.GGMLQuantizationType.Q4_1).dequantize(),
        gguf.dequantize(raw, gguf.GGMLQuantizationType.Q4_1)[order],
    )
