"""Trying scales on groups of a weight: what is kept of each group is that with the smallest error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.scheme import GroupScheme
from qcompile.solvers.grouped import usable_scale

Array = npt.NDArray[Any]


class ScaleTrial:
    """Rounds a block at one scale after the other, in memory that is taken once: most of the time goes into reading it.

    Attributes:
        scale: what was tried last, float32 [groups, columns].
        zero: the zero points, the same shape; zeros where the scheme is symmetric.
        integers: what the block was rounded to, less zero points, float32 [groups, size, columns].
        error: what the block is more than these, in steps of the scale, the same shape.
        best: the scales with the smallest error so far, sum of energy * (block - rounded)^2 over a group.
    """

    def __init__(self, block: Array, energy: Array, scale: Array, zero: Array, scheme: GroupScheme) -> None:
        """Try the first scale.

        Args:
            block: float32 [groups, size, columns].
            energy: float32 [groups, size, 1]: how much the squared error of each input counts.
            scale: what is tried first, float32 [groups, columns].
            zero: zero points of all that are tried, the same shape.
            scheme: how the block is stored.
        """
        self.block, self.scheme = block, scheme
        self.integers, self.error, self._room = (np.empty_like(block) for _ in range(3))
        self._energy = None if np.ptp(energy) == 0 else energy
        self.zero, self._first, self.best = zero, scale, scale.copy()
        self._round(scale)
        self._least = self._sum(self.error, self.error)

    def of(self, scale: Array) -> None:
        """Try a scale; keep it where the error is smaller."""
        self._round(scale)
        found = self._sum(self.error, self.error)
        found *= np.square(scale / self._first)  # a scale itself may be too large to be squared
        better = found < self._least
        for kept, new in ((self._least, found), (self.best, scale)):
            np.copyto(kept, new, where=better)

    def fitted(self) -> Array:
        """Return the scale that takes the integers closest, by least squares, to them with `error` added."""
        change = self._sum(self.integers, self.error)
        power = self._sum(self.integers, self.integers)
        np.divide(change, power, out=change, where=power > 0)
        change *= self.scale
        change += self.scale
        return usable_scale(change)

    def _round(self, scale: Array) -> None:
        self.scale = scale
        np.divide(self.block, scale[:, None], out=self.error)
        np.rint(self.error, out=self.integers)
        if self.scheme.sym:
            np.clip(self.integers, *self.scheme.range, out=self.integers)
        else:
            self.integers += self.zero[:, None]
            np.clip(self.integers, *self.scheme.range, out=self.integers)
            self.integers -= self.zero[:, None]
        self.error -= self.integers

    def _sum(self, first: Array, second: Array) -> Array:
        """Return the sum of energy * first * second over each group, float32 [groups, columns]."""
        if self._energy is not None:
            first = np.multiply(first, self._energy, out=self._room)
        result: Array = np.einsum("gsc,gsc->gc", first, second)
        return result
