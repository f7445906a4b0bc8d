"""A weight in groups as the kernels take it: integers or indices of a codebook in words, and scales of any form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from qcompile.backends.triton.kernels.packing import BITS, PLANES, rows_of_words, values_in_word
from qcompile.backends.triton.kernels.shapes import FLOATS, expect
from qcompile.errors import InputError

SCALES_IN_BLOCK = 256
"""Scales in 8 bits that share a scale of their own."""


@dataclasses.dataclass(frozen=True, eq=False)
class GroupWeight:
    """A weight [K, N]; refuses tensors that are not those of one weight.

    Attributes:
        words: int32 [W, N] of packing.
        scale: float [G, N]; with `scale_indices` float32 [ceil(G * N / 256)].
        bits: 2, 3, 4 or 8.
        group_size: inputs that share a scale.
        plane: that of `Packed`.
        inputs: K.
        zero_point: uint8 [G, N]; None: 2^(bits - 1), and 0 where there is a codebook.
        codebook: float32 [16], for 4 bits, or None.
        scale_indices: uint8 [G, N], or None.
        levels: float32 [256] of the scales.
        offset: float32 [] of the scales.

    Raises:
        InputError: a shape, a dtype or a device does not fit.
    """

    words: torch.Tensor
    scale: torch.Tensor
    bits: int
    group_size: int
    plane: int
    inputs: int
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    scale_indices: torch.Tensor | None = None
    levels: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.plane not in PLANES or self.group_size < 1 or self.inputs < 1:
            found = f"{self.bits} bits, groups of {self.group_size}, a plane of {self.plane}, {self.inputs} inputs"
            raise InputError(
                "words", found, f"Give bits of {BITS}, a group_size above 0, the plane of pack, and inputs"
            )
        rows = rows_of_words(self.inputs, self.bits, self.plane)
        expect("words", self.words, (rows, self.outputs), (torch.int32,))
        groups = (self.groups, self.outputs)
        if self.zero_point is not None:
            expect("zero_point", self.zero_point, groups, (torch.uint8,))
        if self.codebook is not None:
            expect("codebook", self.codebook, (16,), (torch.float32,))
        if self.scale_indices is None or self.levels is None or self.offset is None:
            expect("scale", self.scale, groups, FLOATS)
            return
        expect("indices", self.scale_indices, groups, (torch.uint8,))
        expect("levels", self.levels, (256,), (torch.float32,))
        expect("offset", self.offset, (), (torch.float32,))
        expect("scale", self.scale, (-(-math.prod(groups) // SCALES_IN_BLOCK),), (torch.float32,))

    @property
    def outputs(self) -> int:
        """N."""
        return self.words.shape[-1]

    @property
    def groups(self) -> int:
        """G."""
        return -(-self.inputs // self.group_size)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """All of them, in the order of the kernels' arguments."""
        scales = (self.scale, self.zero_point, self.scale_indices, self.levels, self.offset)
        return (self.words, self.codebook, *scales)

    def pointers(self) -> tuple[torch.Tensor | int | None, ...]:
        """Return the arguments of the kernels between x, y and what they are compiled for."""
        return (*self.tensors, self.outputs)

    def constants(self) -> dict[str, Any]:
        """Return what the kernels are compiled for.

        GROUP is the group size; of all inputs, with what pads them, where there is one group. ALIGNED: a plane has one
        scale for each output. RUN planes after each other have the same scale, in every block. ZERO is subtracted.
        """
        values, padded = values_in_word(self.bits), len(self.words) * values_in_word(self.bits)
        group = self.group_size if self.groups > 1 else padded
        aligned = group % self.plane == 0
        whole = self.zero_point is None and self.codebook is None
        return {
            "INPUTS": self.inputs, "BITS": self.bits, "PLANE": self.plane, "GROUPS": self.groups, "GROUP": group,
            "ALIGNED": aligned, "RUN": math.gcd(group // self.plane, values) if aligned else 1,
            "ZERO": 1 << (self.bits - 1) if whole else 0,
        }  # fmt: skip

    def describe(self, x: torch.Tensor) -> dict[str, int | str]:
        """Return what the time of a product with x depends on, but for the rows of x."""
        dtypes = "/".join("-" if tensor is None else str(tensor.dtype) for tensor in (x, *self.tensors))
        sizes = {"inputs": self.inputs, "outputs": self.outputs, "bits": self.bits, "group": self.group_size}
        return {**sizes, "plane": self.plane, "dtypes": dtypes}
