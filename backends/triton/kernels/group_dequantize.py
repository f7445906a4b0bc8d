"""Words in groups -> the float weight [K, N], for gradients, and where two kernels are faster than one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

from qcompile.backends.triton.kernels.arithmetic import factor, narrow, plane_values, scales_of, zeros_of
from qcompile.backends.triton.kernels.group_weight import GroupWeight
from qcompile.backends.triton.kernels.shapes import FLOATS, expect_card, expect_one_device
from qcompile.errors import InputError

COLUMNS = 128


@triton.jit
def _dequantize(
    y_ptr, words_ptr, table_ptr, scale_ptr, zero_ptr, index_ptr, level_ptr, offset_ptr, outputs,
    INPUTS: tl.constexpr, BITS: tl.constexpr, PLANE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    ALIGNED: tl.constexpr, RUN: tl.constexpr, ZERO: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    block = tl.program_id(0)
    row = tl.arange(0, PLANE)[:, None]
    inside = column < outputs
    place = (block * PLANE + row).to(tl.int64) * outputs + column
    words = tl.load(words_ptr + place, mask=inside, other=0).to(tl.uint32, bitcast=True)
    for j in tl.static_range(32 // BITS):
        first = (block * (32 // BITS) + j) * PLANE
        k = first + row
        group = tl.minimum((first if ALIGNED else k) // GROUP, GROUPS - 1)
        values = plane_values(words, table_ptr, j, BITS, ZERO) * factor(table_ptr, j, BITS)
        if zero_ptr is not None:
            values -= zeros_of(zero_ptr, group, column, outputs)
        values *= scales_of(scale_ptr, index_ptr, level_ptr, offset_ptr, group, column, outputs, GROUPS)
        result = narrow(values, y_ptr.dtype.element_ty)
        tl.store(y_ptr + k.to(tl.int64) * outputs + column, result, mask=inside & (k < INPUTS))


def dequantized(weight: GroupWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return (value - zero_point) * scale, in float32 and rounded once, [K, N]."""
    y = empty(weight, dtype)
    if y.numel():
        expect_card(y)
        grid = (len(weight.words) // weight.plane, triton.cdiv(weight.outputs, COLUMNS))
        wrap_triton(_dequantize)[grid](y, *weight.pointers(), COLUMNS=COLUMNS, **weight.constants())
    return y


def empty(weight: GroupWeight, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight without its numbers.

    Raises:
        InputError: the dtype is none of those of activations, or the tensors are on several devices.
    """
    if dtype not in FLOATS:
        raise InputError("dtype", str(dtype), f"Give {' or '.join(map(str, FLOATS))}")
    expect_one_device(weight.words, *weight.tensors)
    return weight.words.new_empty((weight.inputs, weight.outputs), dtype=dtype)
