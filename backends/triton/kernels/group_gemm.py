"""y = x @ a weight in groups, on tensor cores; any number of rows of x.

The product is turned, y^T = W^T x^T: the weight is the left operand, which tensor cores take from registers, where its
values are made, and x the right one, from shared memory; a step of few rows of x then fills the short side of the
instruction. A program has COLUMNS outputs, TOKENS rows of x and every SPLIT-th block of inputs: it reads the words of a
block once, and multiplies plane by plane with neighbouring inputs of x (see packing), nothing shuffled between.
A weight is (value - zero_point) * scale in float32, rounded once to the dtype of x; sums are float32, without tf32.
SPLIT > 1 writes partial sums, which a second kernel adds in order: the same bits in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import (
    add_product,
    factor,
    narrow,
    plane_values,
    scales_of,
    zeros_of,
)
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.partial_sums import add_up
from qcompile.backends.triton.kernels.shapes import expect_card, rows
from qcompile.backends.triton.kernels.tuning import Tile, bucket, by_rows, chosen

FEW = (
    Tile("few-2", columns=64, rows=16, split=2, stages=3),
    Tile("few-8", columns=64, rows=16, split=8, stages=3),
    Tile("few-wide-4", columns=128, rows=16, split=4, stages=3),
)
SOME = (
    Tile("some", columns=64, rows=64, stages=3),
    Tile("some-4", columns=64, rows=64, split=4, stages=3),
    Tile("some-wide", columns=128, rows=64, warps=8, stages=2),
)
# The first of each fits into the shared memory of an A100 in all widths: of 2 bits, a block has 512 inputs of x.
MANY = (
    Tile("many", columns=128, rows=64, stages=2),
    Tile("many-deep", columns=128, rows=64, stages=3),
    Tile("many-wide", columns=128, rows=128, warps=8, stages=2),
    Tile("many-wide-4", columns=128, rows=128, stages=2),
)


@triton.jit
def _gemm(
    x_ptr, bias_ptr, y_ptr, count, row_stride, input_stride,
    words_ptr, table_ptr, scale_ptr, zero_ptr, index_ptr, level_ptr, offset_ptr, outputs,
    INPUTS: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    ALIGNED: tl.constexpr, RUN: tl.constexpr, ZERO: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    VALUES: tl.constexpr = 32 // BITS
    BLOCKS: tl.constexpr = (INPUTS + PLANE * VALUES - 1) // (PLANE * VALUES)
    part = tl.program_id(2)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[:, None]
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[None, :]
    lane = tl.arange(0, PLANE)
    x_ptr += token.to(tl.int64) * row_stride
    sums = tl.zeros([COLUMNS, TOKENS], tl.float32)
    for turn in range((BLOCKS + SPLIT - 1) // SPLIT):
        block = turn * SPLIT + part
        place = words_ptr + (block * PLANE + lane).to(tl.int64)[None, :] * outputs + column
        words = tl.load(place, mask=(column < outputs) & (block < BLOCKS), other=0).to(tl.uint32, bitcast=True)
        for j in tl.static_range(VALUES):
            first = (block * VALUES + j) * PLANE
            k = first + lane
            inside = (token < count) & (k < INPUTS)[:, None]
            x = tl.load(x_ptr + k[:, None] * input_stride, mask=inside, other=0.0)
            if j % RUN == 0:
                group = tl.minimum((first if ALIGNED else k[None, :]) // GROUP, GROUPS - 1)
                scale = scales_of(scale_ptr, index_ptr, level_ptr, offset_ptr, group, column, outputs, GROUPS)
                if zero_ptr is not None:
                    zero = zeros_of(zero_ptr, group, column, outputs)
            values = plane_values(words, table_ptr, j, BITS, ZERO)
            if zero_ptr is not None:
                values -= zero * (1.0 / factor(table_ptr, j, BITS))
            values *= scale * factor(table_ptr, j, BITS)
            sums = add_product(narrow(values, x.dtype), x, sums)
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + column, mask=column < outputs, other=0.0).to(tl.float32)
    place = y_ptr + (part * count + token).to(tl.int64) * outputs + column
    tl.store(place, narrow(sums, y_ptr.dtype.element_ty), mask=(token < count) & (column < outputs))


def launch(x: torch.Tensor, weight: GroupWeight, bias: torch.Tensor | None, tile: Tile) -> torch.Tensor:
    """Return y [M, N] of x [M, K], by one tile; nothing may be empty."""
    y = x.new_empty(x.shape[0], weight.outputs)
    partial = y if tile.split == 1 else x.new_empty((tile.split, *y.shape), dtype=torch.float32)
    constants = weight.constants()
    grid = (triton.cdiv(x.shape[0], tile.rows), triton.cdiv(weight.outputs, tile.columns), tile.split)
    wrap_triton(_gemm)[grid](
        x, bias if tile.split == 1 else None, partial, x.shape[0], x.stride(0), x.stride(1), *weight.pointers(),
        COLUMNS=tile.columns, TOKENS=tile.rows, SPLIT=tile.split, num_warps=tile.warps,
        num_stages=stages(tile, constants), **constants,
    )  # fmt: skip
    if tile.split > 1:
        add_up(partial, bias, y)
    return y


def stages(tile: Tile, constants: dict[str, Any]) -> int:
    """Return how many steps are under way: one where a plane has several scales, whose copies would not fit."""
    return tile.stages if constants["ALIGNED"] else 1


def gemm(x: torch.Tensor, weight: GroupWeight, bias: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    """Return x @ weight + bias in the shape of y, which is not written to."""
    if y.numel() == 0:
        return y
    expect_card(x)
    matrix = rows(x)
    shape = {"rows": bucket(matrix.shape[0]), **weight.describe(x)}
    tiles = by_rows(matrix.shape[0], FEW, SOME, MANY)
    tile = chosen("group_gemm", tiles, shape, x, lambda tile: launch(matrix, weight, bias, tile))
    return launch(matrix, weight, bias, tile).reshape(y.shape)
