"""NF4: 4 bits whose values are quantiles of the normal distribution, and scales that are quantized themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.solvers.grouped import finite

Array = npt.NDArray[Any]

NF4 = np.array(
    [
        *[-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635],
        *[-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725],
        *[0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941],
        *[0.7229568362236023, 1.0],
    ],
    np.float32,
)
"""The 16 levels: Dettmers et al., "QLoRA" (2023), appendix E."""

SCALES_IN_BLOCK = 256
"""Scales that share a scale of their own under double quantization, section 3 of the paper."""

_STEPS = 65536
"""Numbers of [-1, 1] for which bitsandbytes has looked up the nearest level."""


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """A weight as indices into levels, with a scale for each group of inputs of each output.

    Attributes:
        indices: uint8 [inputs, outputs], 0 to 15.
        scale: float32 [groups, outputs]: the largest magnitude of each group.
    """

    indices: Array
    scale: Array

    def columns(self, columns: slice) -> Codebook:
        """Return that of some outputs."""
        return Codebook(self.indices[:, columns], self.scale[:, columns])

    def weight(self, group_size: int) -> Array:
        """Return the weight that it stands for, float32 [inputs, outputs]."""
        rows = np.arange(len(self.indices)) // group_size
        result: Array = NF4[self.indices] * self.scale[rows]
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """Scales in 8 bits: levels[indices] * scale + offset, in blocks of 256 in the order of memory.

    Attributes:
        indices: uint8 [scales].
        scale: float32 [blocks].
        offset: the mean of the scales.
    """

    indices: Array
    scale: Array
    offset: np.float32

    def values(self) -> Array:
        """Return the scales that it stands for, float32 [scales]."""
        blocks = np.arange(self.indices.size) // SCALES_IN_BLOCK
        result: Array = dynamic_levels()[self.indices] * self.scale[blocks] + self.offset
        return result


def nf4(weight: Array, group_size: int = 64) -> Codebook:
    """Return a weight in NF4: of each number the nearest level, of those in the middle between two the lower.

    A group of zeros has the scale 0 and the level 0. NaN and infinities are those of `finite`.

    Args:
        weight: float32 [inputs, outputs].
        group_size: inputs that share a scale; the last group may be smaller.
    """
    weight = finite(weight)
    inputs, outputs = weight.shape
    groups = -(-inputs // group_size)
    indices, scale = np.empty((inputs, outputs), np.uint8), np.zeros((groups, outputs), np.float32)
    for index in range(groups):
        rows = slice(index * group_size, (index + 1) * group_size)
        scale[index] = np.abs(weight[rows]).max(axis=0, initial=0.0)
        # As bitsandbytes: the inverse is rounded to float32 before it is multiplied by.
        inverse = np.float32(1) / np.where(scale[index] > 0, scale[index], np.float32(1))
        indices[rows] = nearest(weight[rows] * inverse, NF4)
    return Codebook(indices, scale)


def double_quantized(scale: Array) -> DoubleQuantized:
    """Return scales in 8 bits, in blocks of 256, less their mean: QLoRA, section 3, with the map of bitsandbytes.

    The indices are those of bitsandbytes on a CPU, which rounds to 65536 steps before it looks for the nearest level
    (`quantize_cpu_impl` of its cpu_ops.cpp), and gives a block of zeros the index 0. The mean is that of the paper,
    rounded once: torch's, which bitsandbytes takes, may be one last bit off, by its order of summation.

    Args:
        scale: float32, any shape; blocks are made in the order of memory.
    """
    flat = scale.reshape(-1).astype(np.float32)
    offset = np.float32(flat.mean(dtype=np.float64)) if flat.size else np.float32(0)
    left = flat - offset
    blocks = -(-flat.size // SCALES_IN_BLOCK)
    padded = np.zeros(blocks * SCALES_IN_BLOCK, np.float32)
    padded[: flat.size] = left
    largest = np.abs(padded.reshape(blocks, SCALES_IN_BLOCK)).max(axis=1, initial=0.0)
    inverse = np.float32(1) / np.where(largest > 0, largest, np.float32(1))
    indices = _by_table(left * np.repeat(inverse, SCALES_IN_BLOCK)[: flat.size])
    indices[np.repeat(largest == 0, SCALES_IN_BLOCK)[: flat.size]] = 0
    return DoubleQuantized(indices, largest, np.float32(offset))


def _by_table(x: Array) -> Array:
    """Return the index of the level nearest to each number in [-1, 1], rounded to the nearest of 65536 steps first."""
    last = np.float32(_STEPS - 1)
    steps = np.float32(-1) + np.arange(_STEPS, dtype=np.float32) * np.float32(2) / last
    places = np.floor((np.clip(x, -1, 1) + np.float32(1)) * np.float32(0.5) * last + np.float32(0.5))
    result: Array = nearest(steps, dynamic_levels())[places.astype(np.int64)]
    return result


def nearest(x: Array, levels: Array) -> Array:
    """Return the index of the nearest of sorted levels for each number; of two the lower, uint8 as x."""
    middles = (levels[1:] + levels[:-1]) / np.float32(2)
    return np.searchsorted(middles, x, side="left").astype(np.uint8)


def dynamic_levels() -> Array:
    """Return the 256 signed levels of the dynamic map, float32 and sorted.

    Seven sizes of exponent, each with twice as many fractions as the one before it, of both signs, with 0 and 1:
    Dettmers, "8-Bit Approximations for Parallelism in Deep Learning" (2016), section 2.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        ends = _ends(2**exponent)
        magnitudes = np.float32(10.0 ** (exponent - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))
        levels += [*magnitudes, *(-each for each in magnitudes)]
    return np.sort(np.array(levels, np.float32))


def _ends(count: int) -> Array:
    """Return the ends of equal parts of [0.1, 1], to the last bit as bitsandbytes has them from torch.

    That goes in float32 steps from both sides to the middle, each number rounded once.
    """
    low, high = np.float32(0.1), np.float32(1)
    step, places = np.float64((high - low) / np.float32(count)), np.arange(count + 1)
    from_low, from_high = np.float64(low) + step * places, np.float64(high) - step * (count - places)
    return np.where(places < (count + 1) // 2, from_low, from_high).astype(np.float32)
