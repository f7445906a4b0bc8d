"""Parts that kernels share, as functions of Triton; they are called by kernels alone.

Integers come out of their words without the conversion of an integer, which has a quarter of the rate of an addition,
and mostly without a shift: what the mask leaves of a word, under the exponent of 2^23, is 2^23 + value * 2^j where j is
the place of its lowest bit, and 2^23 is subtracted exactly; factor() takes 2^j back, once for each scale or input and
not for each weight. Values above bit 22 are shifted down first, one shift for several planes.
(Kim et al., "Who Says Elephants Can't Run: Bringing Large Scale MoE Models into Cloud Scale Production", 2022, section
3.3, has the idea for float16 and 2^10.)
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels. It cuts bfloat16 where a card rounds, and cannot multiply it; what it
rounds up to a power of two becomes half of that in 8-bit floats (31.6 is 16)."""

EXPONENT = tl.constexpr(0x4B000000)
"""Of 2^23, as float32."""


@triton.jit
def plane_values(words, table_ptr, J: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr):
    """Return the values J of words uint32 in float32, exact, less ZERO and over factor(J, BITS).

    Without a table there is nothing in it but work on each number by itself. Triton then gives the words to threads as
    tensor cores want the values; an argument of the kernel among them, such as the exponent, and all values would go
    through shared memory (seen in Triton's code for sm_80 and sm_90). Of a mask and an exponent that are both constants
    ptxas makes two instructions, unless it is told of the one.

    With a table, return its numbers at the values: 16 are in shared memory, where no two of them are in one bank.
    """
    if table_ptr is None:
        SHIFT: tl.constexpr = J // (23 // BITS) * (23 // BITS) * BITS
        PLACE: tl.constexpr = J * BITS - SHIFT
        MASK: tl.constexpr = ((1 << BITS) - 1) << PLACE
        BASE: tl.constexpr = 8388608.0 + (ZERO << PLACE)
        shifted = words if SHIFT == 0 else words >> SHIFT
        if INTERPRETED:
            placed = (shifted & MASK) | EXPONENT
        else:  # of bits a, b, c the table of (a & b) | c is 0xEA: PTX ISA, "lop3"
            placed = tl.inline_asm_elementwise(
                f"lop3.b32 $0, $1, {MASK}, {EXPONENT}, 0xEA;", "=r,r", [shifted], dtype=tl.uint32, is_pure=True, pack=1
            )
        values = placed.to(tl.float32, bitcast=True) - BASE
    else:
        index = ((words >> (J * BITS)) & ((1 << BITS) - 1)).to(tl.int32)
        table = tl.load(table_ptr + tl.arange(0, 1 << BITS))
        values = tl.reshape(tl.gather(table, tl.reshape(index, [index.numel]), 0), index.shape)
    return values


@triton.jit
def factor(table_ptr, J: tl.constexpr, BITS: tl.constexpr):
    """Return what `plane_values` are to be multiplied by, a power of two of at most 1."""
    return 1.0 / (1 << (J % (23 // BITS) * BITS)) if table_ptr is None else 1.0


@triton.jit
def zeros_of(zero_ptr, group, column, outputs):
    """Return zero points [G, N] of groups (a number, or a matrix) and of a matrix of columns, in float32."""
    return tl.load(zero_ptr + group * outputs + column, mask=column < outputs, other=0).to(tl.float32)


@triton.jit
def scales_of(scale_ptr, index_ptr, level_ptr, offset_ptr, group, column, outputs, GROUPS: tl.constexpr):
    """Return the scales of groups (a number, or a matrix) and of a matrix of columns, in float32.

    They are [G, N], or in 8 bits: levels[indices [G, N]] * scale[block] + offset, blocks of 256 counted in [N, G].
    """
    inside = column < outputs
    if index_ptr is None:
        scale = tl.load(scale_ptr + group * outputs + column, mask=inside, other=0).to(tl.float32)
    else:
        index = tl.load(index_ptr + group * outputs + column, mask=inside, other=0).to(tl.int32)
        block = (column * GROUPS + group) // 256
        scale = tl.load(level_ptr + index) * tl.load(scale_ptr + block, mask=inside, other=0) + tl.load(offset_ptr)
    return scale


@triton.jit
def round_even(values):
    """Return float32 of magnitude below 2^22, rounded half to even."""
    return (values + 12582912.0) - 12582912.0


@triton.jit
def narrow(values, DTYPE: tl.constexpr):
    """Return float32 in a dtype, rounded half to even; for float8e4nv of magnitude up to 448."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        values = _rounded_bits(values, 16)
    elif INTERPRETED and tl.float8e4nv == DTYPE:
        values = tl.where(tl.abs(values) < 2.0**-6, round_even(values * 512.0) / 512.0, _rounded_bits(values, 20))
    return values.to(DTYPE)


@triton.jit
def _rounded_bits(values, BITS: tl.constexpr):
    """Return float32 whose last bits are 0, rounded half to even; NaN as it is."""
    bits = values.to(tl.uint32, bitcast=True)
    rounded = (bits + ((1 << (BITS - 1)) - 1) + ((bits >> BITS) & 1)) & (0x100000000 - (1 << BITS))
    return tl.where(values == values, rounded, bits).to(tl.float32, bitcast=True)


@triton.jit
def add_product(a, b, accumulator):
    """Return accumulator + a @ b: floats in float32, without tf32; int8 in int32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee", out_dtype=accumulator.dtype)


@triton.jit
def activated(values, ACTIVATION: tl.constexpr):
    """Return an activation of float32."""
    if ACTIVATION == "relu":
        values = tl.where(values < 0, 0.0, values)
    elif ACTIVATION == "silu":
        values = values * tl.sigmoid(values)
    elif ACTIVATION == "gelu":
        values = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        values = values * tl.sigmoid(1.5957691216057308 * (values + 0.044715 * values * values * values))
    return values
