"""Integers of 2, 3, 4 and 8 bits in words of 32, and back; not for floats, nor integers that need more bits.

The layout. A word holds V = 32 // bits values of one output: 16, 10, 8 or 4. Words are int32 [W, N], outputs last, so
that four neighbouring outputs are one read of 128 bits. Inputs are in blocks of V * P, where P, the plane, is a power
of two; a block is P words of each output. The value in bits [bits * j, bits * (j + 1)) of word b * P + p is input

    b * V * P + j * P + p,

so that the j-th values of the P words of a block are P inputs in a row, the plane j: a product with tensor cores takes
the words of a block once, and multiplies plane by plane with neighbouring inputs of x, with nothing to interleave; and
where P divides the group size, a plane has one scale for each output. What pads the last block is 0.

Signed integers are stored plus 2^(bits - 1). 3 bits take 10 values a word, 3.2 bits each, and not 32 in three words:
no value crosses a word, so that all widths are read by the same two instructions, for 6.7% more bytes.
"""

from __future__ import annotations

import dataclasses

import torch

from qcompile.errors import InputError

BITS = (2, 3, 4, 8)
PLANES = (32, 16)
"""Widest first: 16 inputs are one step of the float16 tensor cores, 32 are two and half as many reads of x."""

WASTE = 1 / 32
"""Share of the words that may be padding for the sake of the wider plane."""


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A weight in words.

    Attributes:
        words: int32 [W, N], contiguous.
        plane: words of each output in a block.
    """

    words: torch.Tensor
    plane: int


def values_in_word(bits: int) -> int:
    """Return how many values a word holds."""
    return 32 // bits


def rows_of_words(inputs: int, bits: int, plane: int) -> int:
    """Return W, the words of each output."""
    return -(-inputs // (plane * values_in_word(bits))) * plane


def plane_of(inputs: int, bits: int) -> int:
    """Return the widest plane whose padding is small, else the narrowest."""
    narrow = rows_of_words(inputs, bits, PLANES[-1])
    return next(plane for plane in PLANES if rows_of_words(inputs, bits, plane) <= narrow * (1 + WASTE))


def pack(integers: torch.Tensor, bits: int) -> Packed:
    """Return a weight in words.

    Args:
        integers: uint8 [K, N] of 0 to 2^bits - 1, or int8 of -2^(bits-1) to 2^(bits-1) - 1.
        bits: 2, 3, 4 or 8.

    Raises:
        InputError: another shape, dtype or width, or an integer that is out of range.
    """
    if bits not in BITS:
        raise InputError("pack", f"{bits} bits", f"Give one of {BITS}")
    if integers.ndim != 2 or integers.dtype not in (torch.uint8, torch.int8):
        found = f"the weight is {integers.dtype} of shape {tuple(integers.shape)}"
        raise InputError("pack", found, "Give uint8 or int8 [inputs, outputs]")
    inputs, outputs = integers.shape
    shift = 1 << (bits - 1) if integers.dtype == torch.int8 else 0
    if integers.numel() and not 0 <= int(integers.min()) + shift <= int(integers.max()) + shift < 1 << bits:
        raise InputError("pack", f"an integer needs more than {bits} bits", "Give more bits, or clip the integers")
    plane, values = plane_of(inputs, bits), values_in_word(bits)
    blocks = rows_of_words(inputs, bits, plane) // plane
    padded = integers.new_zeros(blocks * values * plane, outputs, dtype=torch.uint8)
    padded[:inputs] = integers.to(torch.int16) + shift
    words = integers.new_zeros(blocks, plane, outputs, dtype=torch.int32)
    for j, values_of_plane in enumerate(padded.reshape(blocks, values, plane, outputs).unbind(1)):
        words |= values_of_plane.to(torch.int32) << (bits * j)
    return Packed(words.reshape(blocks * plane, outputs), plane)


def unpack(words: torch.Tensor, bits: int, plane: int, inputs: int) -> torch.Tensor:
    """Return the integers in words, uint8 [K, N]: signed ones plus 2^(bits - 1).

    Args:
        words: int32 [W, N].
        bits: 2, 3, 4 or 8.
        plane: that of `Packed`.
        inputs: K.

    Raises:
        InputError: W is not that of K inputs.
    """
    if words.ndim != 2 or len(words) != rows_of_words(inputs, bits, plane):
        found = f"words of shape {tuple(words.shape)}, where {inputs} inputs take {rows_of_words(inputs, bits, plane)}"
        raise InputError("unpack", found, "Give the words, width, plane and inputs of one weight")
    blocks, values, outputs = len(words) // plane, values_in_word(bits), words.shape[1]
    shifts = torch.arange(values, device=words.device, dtype=torch.int32) * bits
    integers = (words.reshape(blocks, 1, plane, outputs) >> shifts[:, None, None]) & ((1 << bits) - 1)
    return integers.reshape(blocks * values * plane, outputs)[:inputs].to(torch.uint8)
