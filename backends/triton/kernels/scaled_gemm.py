"""y = activation(q @ weight^T * scale * weight_scale + x[:, outliers] @ outlier_weight^T + bias), in one kernel.

q [M, K] and weight [N, K] are both int8, summed in int32, or both float8, summed in float32: both with K last, as the
tensor cores for 8 bits read them. What the sums are multiplied by, the product of outliers, which is summed in float32
onto it in the same registers, bias and activation are done before y is rounded, once, and written.
Neighbouring programs share columns of the weight: PANEL rows of programs go through them together.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import activated, add_product, narrow
from qcompile.backends.triton.kernels.shapes import FLOATS, expect, expect_card, rows
from qcompile.backends.triton.kernels.tuning import Tile, bucket, by_rows, chosen
from qcompile.errors import InputError

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu")
OUTLIERS_IN_STEP = 32
PANEL = 8

FEW = (
    Tile("few", columns=64, rows=16, depth=128, warps=4, stages=4),
    Tile("few-wide", columns=128, rows=16, depth=128, warps=4, stages=3),
)
SOME = (
    Tile("some", columns=64, rows=64, depth=128, warps=4, stages=4),
    Tile("some-wide", columns=128, rows=64, depth=128, warps=4, stages=3),
)
MANY = (
    Tile("many", columns=128, rows=128, depth=128, warps=8, stages=3),
    Tile("many-wide", columns=256, rows=128, depth=128, warps=8, stages=3),
    Tile("many-flat", columns=256, rows=64, depth=128, warps=4, stages=3),
    Tile("many-shallow", columns=256, rows=128, depth=64, warps=8, stages=4),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    """Operands of 8 bits and what their product is scaled by; refuses what does not fit.

    Attributes:
        q: int8 or float8_e4m3fn [..., K].
        scale: float32 [...], by token, or [], one for all.
        weight: [N, K] of the dtype of q.
        weight_scale: float32 [N].
        bias: float [N], or None.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """

    q: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor | None

    def __post_init__(self) -> None:
        if self.q.ndim == 0 or self.weight.ndim != 2:
            found = f"q is of shape {tuple(self.q.shape)}, weight of {tuple(self.weight.shape)}"
            raise InputError("q", found, "Give [..., inputs] and [outputs, inputs]")
        expect("weight", self.weight, (len(self.weight), self.q.shape[-1]), (self.q.dtype,))
        expect("weight_scale", self.weight_scale, (len(self.weight),), (torch.float32,))
        expect("scale", self.scale, () if self.scale.ndim == 0 else self.q.shape[:-1], (torch.float32,))

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """All of them."""
        return self.q, self.scale, self.weight, self.weight_scale, self.bias


@dataclasses.dataclass(frozen=True, eq=False)
class Outliers:
    """Columns of x that are multiplied in float.

    Attributes:
        x: float [..., K].
        columns: int32 [O].
        weight: [N, O] of the dtype of x.
    """

    x: torch.Tensor
    columns: torch.Tensor
    weight: torch.Tensor

    def expect(self, scaled: Scaled) -> None:
        """Refuse what does not fit to the product of 8 bits.

        Raises:
            InputError: a shape, a dtype or a device does not fit.
        """
        expect("x", self.x, None, FLOATS)
        if self.x.shape != scaled.q.shape:
            raise InputError("x", f"shape {tuple(self.x.shape)}", f"Give {tuple(scaled.q.shape)}, that of q")
        expect("outliers", self.columns, (self.columns.numel(),), (torch.int32,))
        expect("outlier_weight", self.weight, (len(scaled.weight), len(self.columns)), (self.x.dtype,))


@triton.jit
def _gemm(
    q_ptr, scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, x_ptr, outlier_ptr, outlier_weight_ptr, y_ptr,
    count, outputs, row_stride, input_stride, outliers,
    INPUTS: tl.constexpr, STEPS: tl.constexpr, BY_TOKEN: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, OUTLIERS: tl.constexpr, PANEL: tl.constexpr,
):  # fmt: skip
    tall, wide = tl.cdiv(count, ROWS), tl.cdiv(outputs, COLUMNS)
    panel = tl.program_id(0) // (PANEL * wide)
    height = tl.minimum(tall - panel * PANEL, PANEL)
    place = tl.program_id(0) % (PANEL * wide)
    token = ((panel * PANEL + place % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (place // height * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    here, there = (token < count)[:, None], (column < outputs)[None, :]
    depth = tl.arange(0, DEPTH)
    q_place = q_ptr + token[:, None] * INPUTS + depth[None, :]
    weight_place = weight_ptr + column[None, :] * INPUTS + depth[:, None]
    INTEGERS: tl.constexpr = q_ptr.dtype.element_ty == tl.int8
    NOTHING: tl.constexpr = 0 if INTEGERS else 0.0
    sums = tl.zeros([ROWS, COLUMNS], tl.int32 if INTEGERS else tl.float32)
    for step in range((INPUTS + DEPTH - 1) // DEPTH):
        if INPUTS % DEPTH == 0:
            q = tl.load(q_place, mask=here, other=NOTHING)
            weight = tl.load(weight_place, mask=there, other=NOTHING)
        else:
            inside = depth < INPUTS - step * DEPTH
            q = tl.load(q_place, mask=here & inside[None, :], other=NOTHING)
            weight = tl.load(weight_place, mask=there & inside[:, None], other=NOTHING)
        sums = add_product(q, weight, sums)
        q_place += DEPTH
        weight_place += DEPTH
    scale = tl.load(scale_ptr + (token if BY_TOKEN else token * 0), mask=token < count, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + column, mask=column < outputs, other=0.0)
    result = sums.to(tl.float32) * scale[:, None] * weight_scale[None, :]
    if x_ptr is not None:
        for turn in range(STEPS):
            o = turn * OUTLIERS + tl.arange(0, OUTLIERS)
            channel = tl.load(outlier_ptr + o, mask=o < outliers, other=0)
            x_place = x_ptr + token[:, None] * row_stride + channel[None, :] * input_stride
            x = tl.load(x_place, mask=here & (o < outliers)[None, :], other=0.0)
            outlier_place = outlier_weight_ptr + column[None, :] * outliers + o[:, None]
            outlier_weight = tl.load(outlier_place, mask=there & (o < outliers)[:, None], other=0.0)
            result = add_product(x, outlier_weight, result)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    result = narrow(activated(result, ACTIVATION), y_ptr.dtype.element_ty)
    tl.store(y_ptr + token[:, None] * outputs + column[None, :], result, mask=here & there)


def launch(scaled: Scaled, outliers: Outliers | None, activation: str, y: torch.Tensor, tile: Tile) -> torch.Tensor:
    """Write y [..., N] by one tile, and return it; nothing may be empty."""
    q, inputs, outputs = scaled.q.contiguous(), scaled.q.shape[-1], len(scaled.weight)
    count = q.numel() // inputs
    x = None if outliers is None else rows(outliers.x)
    several = 0 if outliers is None else len(outliers.columns)
    given = (None, None) if outliers is None else (outliers.columns, outliers.weight)
    strides = (0, 0) if x is None else x.stride()
    wrap_triton(_gemm)[(triton.cdiv(count, tile.rows) * triton.cdiv(outputs, tile.columns),)](
        q, scaled.scale, scaled.weight, scaled.weight_scale, scaled.bias, x, *given, y,
        count, outputs, *strides, several,
        INPUTS=inputs, STEPS=triton.cdiv(several, OUTLIERS_IN_STEP), BY_TOKEN=scaled.scale.ndim > 0,
        ACTIVATION=activation, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, OUTLIERS=OUTLIERS_IN_STEP,
        PANEL=PANEL, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def scaled_gemm(scaled: Scaled, outliers: Outliers | None, activation: str, y: torch.Tensor) -> torch.Tensor:
    """Write y [..., N] by the tile for its shape, and return it."""
    if y.numel() == 0:
        return y
    inputs = scaled.q.shape[-1]
    if inputs == 0:
        raise InputError("q", "it has no inputs", "Give at least one")
    expect_card(y)
    count = scaled.q.numel() // inputs
    shape: dict[str, int | str] = {
        "rows": bucket(count),
        "inputs": inputs,
        "outputs": len(scaled.weight),
        "q": str(scaled.q.dtype),
    }
    shape |= {"y": str(y.dtype), "outliers": 0 if outliers is None else bucket(len(outliers.columns))}
    tiles = by_rows(count, FEW, SOME, MANY)
    tile = chosen("scaled_gemm", tiles, shape, y, lambda tile: launch(scaled, outliers, activation, y, tile))
    return launch(scaled, outliers, activation, y, tile)


def expect_activation(activation: str, dtype: torch.dtype) -> None:
    """Refuse an activation or a dtype of y that the kernel does not have."""
    if activation not in ACTIVATIONS:
        raise InputError("activation", repr(activation), f"Give one of {', '.join(ACTIVATIONS)}")
    if dtype not in FLOATS:
        raise InputError("dtype", str(dtype), f"Give {' or '.join(map(str, FLOATS))}")
