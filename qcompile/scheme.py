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
