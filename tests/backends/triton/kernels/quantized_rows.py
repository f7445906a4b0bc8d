"""What rows of integers of 8 bits and their scales may be, where float64 says what they stand for."""

from __future__ import annotations

import torch

from tests.backends.triton.kernels.grouped_cases import EPSILON

SINGLE = EPSILON[torch.float32]


def expect_nearest(found: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, inner: float = 0.0) -> None:
    """Compare with float64 x: integers are the nearest, but beside a middle, and scales right but for rounding.

    `inner`: relative to the largest of a row, what x itself may be off by.
    """
    q, scale = found
    largest = x.abs().amax(-1)
    expected = torch.where(largest > 0, largest / 127, 1.0)
    assert q.shape == x.shape
    assert q.dtype == torch.int8
    assert ((scale.double() - expected).abs() <= expected * (inner + 2 * SINGLE)).all()
    assert ((q.double() - x / expected[..., None]).abs() <= 0.5 + 127 * (2 * inner + 6 * SINGLE)).all()
