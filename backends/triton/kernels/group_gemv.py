"""y = x @ a weight in groups, for few rows of x and without tensor cores; slow where x has more than 8 rows.

A program has COLUMNS outputs and every SPLIT-th step of ROWS words; neighbouring threads read 128 bits of words of
four neighbouring outputs, and the next step is under way while one is multiplied. Words are evicted first.
Values stay exact integers in float32; a run of planes with one scale is summed first, so that scale and zero point cost
one multiplication for a run and not for a weight: scale * (sum of x * value - zero_point * sum of x). Sums are float32.
SPLIT > 1 writes partial sums, which a second kernel adds in order: the same bits in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import factor, narrow, plane_values, scales_of, zeros_of
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.partial_sums import add_up
from qcompile.backends.triton.kernels.shapes import expect_card, rows
from qcompile.backends.triton.kernels.tuning import Tile, chosen

TILES = (
    Tile("narrow", columns=32, rows=32),
    Tile("narrow-4", columns=32, rows=32, split=4),
    Tile("square-4", columns=64, rows=16, split=4),
    Tile("wide-8", columns=128, rows=16, split=8),
    Tile("widest-8", columns=256, rows=8, split=8),
)


@triton.jit
def _gemv(
    x_ptr, bias_ptr, y_ptr, row_stride, input_stride,
    words_ptr, table_ptr, scale_ptr, zero_ptr, index_ptr, level_ptr, offset_ptr, outputs,
    M: tl.constexpr, INPUTS: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr, GROUPS: tl.constexpr,
    GROUP: tl.constexpr, ALIGNED: tl.constexpr, RUN: tl.constexpr, ZERO: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    VALUES: tl.constexpr = 32 // BITS
    STEPS: tl.constexpr = (INPUTS + PLANE * VALUES - 1) // (PLANE * VALUES) * PLANE // ROWS
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = column < outputs
    sums = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros([ROWS, COLUMNS], tl.float32),)
    place = words_ptr + (part * ROWS + row).to(tl.int64) * outputs + column
    upcoming = tl.load(place, mask=inside & (part < STEPS), other=0, eviction_policy="evict_first")
    for turn in range((STEPS + SPLIT - 1) // SPLIT):
        step = turn * SPLIT + part
        words = upcoming.to(tl.uint32, bitcast=True)
        place += SPLIT * ROWS * outputs
        upcoming = tl.load(place, mask=inside & (step + SPLIT < STEPS), other=0, eviction_policy="evict_first")
        base = step * ROWS // PLANE * (PLANE * VALUES) + step * ROWS % PLANE
        for run in tl.static_range(VALUES // RUN):
            first = base + run * RUN * PLANE
            products, totals = _run(
                x_ptr, words, table_ptr, first + row, row_stride, input_stride,
                M, INPUTS, BITS, PLANE, ZERO, run * RUN, RUN, ROWS, COLUMNS,
            )  # fmt: skip
            group = tl.minimum((first if ALIGNED else first + row) // GROUP, GROUPS - 1)
            scale = scales_of(scale_ptr, index_ptr, level_ptr, offset_ptr, group, column, outputs, GROUPS)
            if zero_ptr is not None:
                zero = zeros_of(zero_ptr, group, column, outputs)
            updated = ()
            for m in tl.static_range(M):
                if zero_ptr is None:
                    updated = updated + (sums[m] + scale * products[m],)
                else:
                    updated = updated + (sums[m] + scale * (products[m] - zero * totals[m]),)
            sums = updated
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    for m in tl.static_range(M):
        result = tl.sum(sums[m], axis=0)
        if bias_ptr is not None:
            result += tl.load(bias_ptr + column, mask=column < outputs, other=0.0).to(tl.float32)
        result = narrow(result, y_ptr.dtype.element_ty)
        tl.store(y_ptr + (part * M + m) * outputs + column, result, mask=column < outputs)


@triton.jit
def _run(
    x_ptr, words, table_ptr, k, row_stride, input_stride, M: tl.constexpr, INPUTS: tl.constexpr,
    BITS: tl.constexpr, PLANE: tl.constexpr, ZERO: tl.constexpr, FIRST: tl.constexpr, RUN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return, for each row of x, the products with a run of planes [ROWS, COLUMNS], and the sums of x [ROWS, 1]."""
    products, totals = (), ()
    for _ in tl.static_range(M):
        products = products + (tl.zeros([ROWS, COLUMNS], tl.float32),)
        totals = totals + (tl.zeros([ROWS, 1], tl.float32),)
    for j in tl.static_range(RUN):
        values = plane_values(words, table_ptr, FIRST + j, BITS, ZERO)
        inputs = k + j * PLANE
        more_products, more_totals = (), ()
        for m in tl.static_range(M):
            x = tl.load(x_ptr + m * row_stride + inputs * input_stride, mask=inputs < INPUTS, other=0.0).to(tl.float32)
            more_products = more_products + (products[m] + (x * factor(table_ptr, FIRST + j, BITS)) * values,)
            more_totals = more_totals + (totals[m] + x,)
        products, totals = more_products, more_totals
    return products, totals


def launch(x: torch.Tensor, weight: GroupWeight, bias: torch.Tensor | None, tile: Tile) -> torch.Tensor:
    """Return y [M, N] of x [M, K], by one tile; nothing may be empty."""
    y = x.new_empty(len(x), weight.outputs)
    partial = y if tile.split == 1 else x.new_empty((tile.split, *y.shape), dtype=torch.float32)
    wrap_triton(_gemv)[(triton.cdiv(weight.outputs, tile.columns), tile.split)](
        x, bias if tile.split == 1 else None, partial, x.stride(0), x.stride(1), *weight.pointers(),
        M=len(x), COLUMNS=tile.columns, ROWS=min(tile.rows, weight.plane), SPLIT=tile.split, num_warps=tile.warps,
        **weight.constants(),
    )  # fmt: skip
    if tile.split > 1:
        add_up(partial, bias, y)
    return y


def gemv(x: torch.Tensor, weight: GroupWeight, bias: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    """Return x @ weight + bias in the shape of y, which is not written to."""
    if y.numel() == 0:
        return y
    expect_card(x)
    matrix = rows(x)
    shape = {"rows": len(matrix), **weight.describe(x)}
    tile = chosen("group_gemv", TILES, shape, x, lambda tile: launch(matrix, weight, bias, tile))
    return launch(matrix, weight, bias, tile).reshape(y.shape)
