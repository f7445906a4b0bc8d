"""Scheme: how one tensor is quantized, as data."""

from __future__ import annotations

import dataclasses
from typing import Literal

Granularity = Literal["per_tensor", "per_channel", "per_token"]
Dtype = Literal["int8", "uint8"]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Data type, granularity and symmetry of a quantized tensor.

    Attributes:
        dtype: storage type of the quantized values.
        granularity: which elements share a scale. For an activation of shape [batch, sequence, channels]:
            per_tensor has scale shape [], per_token [batch, sequence, 1]. For a weight [in_features, out_features]:
            per_tensor has scale shape [], per_channel [out_features].
        sym: True puts the zero point in the middle of the type's range (0 for int8, 128 for uint8).
        dynamic: True computes the scale at run time from the tensor itself; only for activations.
        bits: how many of the 8 bits are used; 7 for weights on a CPU whose 8-bit products saturate (u8 x s8 pairs
            are added in 16 bits where there is no VNNI).
    """

    dtype: Dtype = "int8"
    granularity: Granularity = "per_tensor"
    sym: bool = True
    dynamic: bool = False
    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {self.bits}")

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest quantized value; symmetric int8 leaves out the lowest so that it negates exactly."""
        if self.dtype == "uint8":
            return 0, 2**self.bits - 1
        high: int = 2 ** (self.bits - 1) - 1
        return (-high, high) if self.sym else (-high - 1, high)


ASYMMETRIC_UINT8 = Scheme("uint8", "per_tensor", sym=False)
"""The usual static activation: one scale, and a zero point that lets Relu's zero be the smallest value."""

PER_CHANNEL_INT8 = Scheme("int8", "per_channel")
"""The usual weight: one symmetric scale per output channel."""


@dataclasses.dataclass(frozen=True)
class GroupScheme:
    """How a weight [in_features, out_features] is stored where activations stay float: one scale for each group.

    A symmetric group has no zero point, and a scale that may be negative, so that its extreme value lands on the one
    integer that only one sign has: -2**(bits - 1).

    Attributes:
        bits: of each integer, 1 to 8.
        group_size: input features that share a scale, of each output; the last group may be smaller. -1: all of them.
        sym: True has integers from -2**(bits - 1) to 2**(bits - 1) - 1; False from 0 to 2**bits - 1, and zero points.
    """

    bits: int = 4
    group_size: int = 64
    sym: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {self.bits}")
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size must be positive, or -1 for one group, not {self.group_size}")

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.sym else (0, 2 * half - 1)

    def size(self, inputs: int) -> int:
        """How many input features share a scale, of a weight that has so many."""
        return max(inputs, 1) if self.group_size == -1 else self.group_size

    def groups(self, inputs: int) -> int:
        """How many scales each output has."""
        return -(-inputs // self.size(inputs))
