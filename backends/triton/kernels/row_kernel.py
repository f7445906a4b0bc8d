"""What a program does with a whole row: a residual is added, or a gate multiplied; a norm; quantization to 8 bits.

One kernel, of whose parts each may be left out. A row stays in registers between them: x is read once, and what is
between is not written, but for the sum with a residual, which others read too. All is float32, but that the sum is
rounded to the dtype of x before the norm reads it; x / scale is x * (1 / scale). Rows are no longer than 2^20
(Triton's largest tensor). A row that is not finite gets the scale NaN, which makes its products NaN, and zeros.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import activated, narrow, round_even
from qcompile.backends.triton.kernels.shapes import FLOATS, expect, expect_card, expect_input, expect_one_device, rows
from qcompile.errors import InputError

LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""What the largest magnitude of a row becomes. The lowest int8 is not used: integers are symmetric."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of x, and what is done with them before they are written; refuses what does not fit.

    Attributes:
        x: float [..., K], strided as it is.
        other: of the shape and dtype of x, strided as it is, or None.
        activation: of the other, which multiplies x then; "none": the other is a residual, and added.
        norm: "none", "rms" or "layer", over the last axis.
        weight: float [K], of the norm.
        bias: float [K], of the norm, or None.
        inliers: bool [K], or None: all; what is False counts as 0.
        epsilon: of the norm.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """

    x: torch.Tensor
    other: torch.Tensor | None = None
    activation: str = "none"
    norm: str = "none"
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    inliers: torch.Tensor | None = None
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        expect_input(self.x)
        if self.other is not None:
            expect_alike(self.x, self.other)
        inputs = (self.x.shape[-1],)
        for name, dtypes in (("weight", FLOATS), ("bias", FLOATS), ("inliers", (torch.bool,))):
            tensor = getattr(self, name)
            if tensor is not None:
                expect(name, tensor, inputs, dtypes)
        expect_one_device(self.x, self.other, self.weight, self.bias, self.inliers)

    def empty(self, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return y of a dtype, and the sum with a residual, of no elements without one; both without their numbers."""
        added = self.other is not None and self.activation == "none"
        return self.x.new_empty(self.x.shape, dtype=dtype), self.x.new_empty(self.x.shape if added else 0)

    def empty_quantized(self, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q of a dtype of `LIMITS`, its scales float32 [...], and the sum of `empty`, without their numbers."""
        q, total = self.empty(dtype)
        return q, self.x.new_empty(self.x.shape[:-1], dtype=torch.float32), total


def expect_alike(x: torch.Tensor, other: torch.Tensor) -> None:
    """Refuse a residual or a gate of another shape or dtype than x."""
    expect("other", other, None, (x.dtype,))
    if other.shape != x.shape:
        raise InputError("other", f"shape {tuple(other.shape)}", f"Give {tuple(x.shape)}, that of x")


@triton.jit
def _row(
    x_ptr, other_ptr, weight_ptr, bias_ptr, inlier_ptr, y_ptr, scale_ptr, sum_ptr,
    row_stride, input_stride, other_row_stride, other_input_stride, epsilon,
    INPUTS: tl.constexpr, ACTIVATION: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < INPUTS
    x = tl.load(x_ptr + row * row_stride + k * input_stride, mask=inside, other=0.0).to(tl.float32)
    if other_ptr is not None:
        place = row * other_row_stride + k * other_input_stride
        second = tl.load(other_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION == "none":
            total = narrow(x + second, sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + row * INPUTS + k, total, mask=inside)
            x = total.to(tl.float32)
        else:
            x *= activated(second, ACTIVATION)
    if NORM == "layer":
        x = tl.where(inside, x - tl.sum(x, axis=0) / INPUTS, 0.0)
    if NORM != "none":
        x *= tl.div_rn(1.0, tl.sqrt_rn(tl.sum(x * x, axis=0) / INPUTS + epsilon))
        x *= tl.load(weight_ptr + k, mask=inside, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            x += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if inlier_ptr is not None:
        x = tl.where(tl.load(inlier_ptr + k, mask=inside, other=0) != 0, x, 0.0)
    if scale_ptr is None:
        y = narrow(x, y_ptr.dtype.element_ty)
    else:
        largest = tl.max(tl.abs(x), axis=0)
        scale = tl.where(largest > 0, tl.div_rn(largest, LIMIT), 1.0) + tl.sum(x * 0.0, axis=0)
        ratio = x * tl.div_rn(1.0, scale)  # one division for a row: one for each number takes longer than to read it
        ratio = tl.where(ratio == ratio, ratio, 0.0)
        if y_ptr.dtype.element_ty == tl.int8:
            y = round_even(ratio).to(tl.int8)
        else:
            # The reciprocal may have taken the largest past the limit, by a rounding.
            y = narrow(tl.minimum(tl.maximum(ratio, -LIMIT), LIMIT), y_ptr.dtype.element_ty)
        tl.store(scale_ptr + row, scale)
    tl.store(y_ptr + row * INPUTS + k, y, mask=inside)


def written(given: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y [..., K] in the dtype of x, and the sum with a residual, [..., K] too, of no elements without one."""
    y, total = given.empty()
    _launch(given, y, None, total, 0.0)
    return y, total


def quantized(given: Rows, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q [..., K] of a dtype of `LIMITS`, scales float32 [...], and the sum of `written`."""
    q, scale, total = given.empty_quantized(dtype)
    if q.numel() == 0:
        scale.fill_(1.0)
    _launch(given, q, scale, total, LIMITS[dtype])
    return q, scale, total


def _launch(given: Rows, y: torch.Tensor, scale: torch.Tensor | None, total: torch.Tensor, limit: float) -> None:
    if y.numel() == 0:
        return
    expect_card(y)
    x, inputs = rows(given.x), y.shape[-1]
    block = triton.next_power_of_2(inputs)
    other = x if given.other is None else rows(given.other)
    wrap_triton(_row)[(x.shape[0],)](
        x, None if given.other is None else other, given.weight, given.bias, given.inliers, y, scale,
        total if total.numel() else None, *x.stride(), *other.stride(), given.epsilon,
        INPUTS=inputs, ACTIVATION=given.activation, NORM=given.norm, LIMIT=limit, BLOCK=block,
        num_warps=min(max(block // 1024, 1), 16),
    )  # fmt: skip
